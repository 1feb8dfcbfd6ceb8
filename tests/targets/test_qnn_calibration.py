"""Between which numbers a program's values lie: what is measured, and what is refused."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import pockmobile
from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph
from pockmobile.targets import Qnn
from pockmobile.targets.qnn.calibration import Batch, as_batches, measure
from tests.parity_cases import SUBJECTS, model_of

BATCHES = [SUBJECTS["mlp"].batch(torch.Generator().manual_seed(seed)) for seed in range(3)]


class _Graphs(Exception):  # noqa: N818
    """Ends a compilation with the graphs of its methods."""


@pytest.fixture(scope="module")
def graphs() -> Mapping[str, JointGraph]:
    found: dict[str, JointGraph] = {}

    def stop(target: Qnn, given: Mapping[str, JointGraph]) -> Qnn:
        found.update(given)
        raise _Graphs

    model, target = copy.deepcopy(model_of("mlp")), Qnn(compiles=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Qnn, "calibrated", stop)
        with pytest.raises(_Graphs):
            pockmobile.compile(model, BATCHES[0][:1], BATCHES[0][1:], target=target)
    return found


def test_ranges_are_of_all_methods_and_of_trained_parameters(
    graphs: Mapping[str, JointGraph],
) -> None:
    slow = measure(graphs, as_batches(BATCHES), 1e-6)
    fast = measure(graphs, as_batches(BATCHES), 1.0)
    assert slow.keys() == {"train_step", "evaluate", "predict"}
    for method, graph in graphs.items():
        floats = {n.name for n in graph.nodes if _is_float(n.meta.get("val"))}
        assert slow[method].keys() == floats
    (output,) = (node.name for node in graphs["predict"].results)
    assert fast["predict"][output].high > slow["predict"][output].high


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def test_inputs_come_by_name_too(graphs: Mapping[str, JointGraph]) -> None:
    (name,) = graphs["train_step"].input_nodes(pockmobile.graph.Role.INPUT)
    by_name = as_batches([({name: x}, y) for x, y in BATCHES])
    assert measure(graphs, by_name, 0.1) == measure(graphs, as_batches(BATCHES), 0.1)
    with pytest.raises(UsageError, match="the calibration has an input 'wrong', which the"):
        measure(graphs, [Batch((), (BATCHES[0][1],), {"wrong": BATCHES[0][0]})], 0.1)


def test_batches_that_do_not_fit_are_refused(graphs: Mapping[str, JointGraph]) -> None:
    x, y = BATCHES[0]
    with pytest.raises(UsageError, match=r"has 1 input tensors .*float32 \[3, 16\].*\[4, 16\]"):
        measure(graphs, [Batch((x[:3],), (y,))], 0.1)
    with pytest.raises(UsageError, match=r"has 0 target tensors \(none\), expected .*int64"):
        measure(graphs, [Batch((x,), ())], 0.1)
    with pytest.raises(UsageError, match="calibration batch 0 is a Tensor, expected a pair"):
        as_batches([x])


def test_a_training_that_diverges_is_refused(graphs: Mapping[str, JointGraph]) -> None:
    with pytest.raises(UsageError, match="infinite or NaN; lower calibration_lr"):
        measure(graphs, as_batches(BATCHES), 1e30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8', expected fp16 or int16"),
        ({"precision": "int16"}, "needs 2 batches of examples at least to calibrate, found 0"),
        (
            {"precision": "int16", "calibration": BATCHES[:1]},
            "found 1; give --calib",
        ),
        ({"calibration": BATCHES}, "calibration is for precision int16, found fp16"),
        (
            {"precision": "int16", "calibration": BATCHES, "soc": "SM8450"},
            "a product of 16-bit numbers needs v73",
        ),
        (
            {"precision": "int16", "calibration": BATCHES, "calibration_lr": 0.0},
            "calibration_lr is 0.0, expected a positive number",
        ),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Qnn(**options)


def test_the_report_calls_it_an_experiment() -> None:
    options = Qnn(precision="int16", calibration=BATCHES).options()
    assert options["experimental"] is True
    assert options["calibration_batches"] == len(BATCHES)


def test_float16_is_enough_for_an_older_chip() -> None:
    assert Qnn(soc="SM8450").options()["precision"] == "fp16"
