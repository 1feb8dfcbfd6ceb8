"""Inputs are taken in every lossless form, and anything else is refused by one clear line."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pockmobile.artifact.manifest import Tensor
from pockmobile.errors import InputError
from pockmobile.session import Session
from pockmobile.session.batches import all_finite, are_finite, counts, pad, prepare
from tests.tiny_program import BATCH, random_rows, write_tiny_program

VALUES, KINDS, LABELS = random_rows(BATCH)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(write_tiny_program(tmp_path_factory.mktemp("tiny") / "tiny.pte").path)


def test_inputs_by_name_in_order_and_from_numpy_agree(session: Session) -> None:
    values, kinds, labels = random_rows(BATCH)
    named = session.evaluate({"kinds": kinds, "values": values}, {"labels": labels})
    assert named == session.evaluate([values, kinds], labels)
    arrays = (values.numpy().astype(np.float64), kinds.numpy().astype(np.int32))
    arrays[0].flags.writeable = False
    assert named == session.evaluate(arrays, labels.int())
    assert named == session.evaluate((values.t().contiguous().t(), kinds), [labels.numpy()])
    assert named == session.evaluate((values.requires_grad_(), kinds.numpy()[::1]), labels)


def test_numpy_views_are_taken(session: Session) -> None:
    values, kinds, labels = random_rows(BATCH)
    backwards = (values.numpy()[::-1], kinds.numpy()[::-1])
    assert session.evaluate(backwards, labels.numpy()[::-1]).loss == pytest.approx(
        session.evaluate((values, kinds), labels).loss, abs=1e-6
    )


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (VALUES, LABELS, r"found 1 tensors, expected 2 \(values, kinds\)"),
        ((VALUES, KINDS, KINDS), LABELS, r"found 3 tensors, expected 2 \(values, kinds\)"),
        ({"values": VALUES}, LABELS, "kinds is missing; the program takes values, kinds"),
        (
            {"value": VALUES, "kinds": KINDS},
            LABELS,
            r"unknown name 'value': did you mean values\? \(the program takes values, kinds\)",
        ),
        (([[1.0]], KINDS), LABELS, "values is a list, expected a torch tensor or numpy array"),
        ((VALUES, KINDS), [0, 1, 2, 0], r"found 4 tensors, expected 1 \(labels\)"),
        ((VALUES.half(), KINDS), LABELS, "values has dtype float16, expected float32; convert"),
        (
            (VALUES, KINDS.float()),
            LABELS,
            "kinds has dtype float32, expected int64; convert it",
        ),
        ((VALUES, KINDS.bool()), LABELS, "kinds has dtype bool, expected int64"),
        (
            (np.array([["a"]]), KINDS),
            LABELS,
            "values is a numpy array of <U1, expected float32",
        ),
        ((VALUES[:, :3], KINDS), LABELS, r"values has shape \[4, 3\], expected \[rows, 5\]"),
        ((VALUES[0], KINDS), LABELS, r"values has shape \[5\], expected \[rows, 5\]"),
        ((VALUES, KINDS[:, None]), LABELS, r"kinds has shape \[4, 1\], expected \[rows\]"),
        (
            (VALUES, KINDS[:3]),
            LABELS,
            r"numbers of rows differ \(values 4, kinds 3, labels 4\)",
        ),
        (
            (VALUES, KINDS),
            LABELS[:3],
            r"numbers of rows differ \(values 4, kinds 4, labels 3\)",
        ),
        ((VALUES[:0], KINDS[:0]), LABELS[:0], "values, kinds, labels: no rows"),
        ((VALUES * math.nan, KINDS), LABELS, r"values\[0, 0\] is nan, expected finite numbers"),
        ((VALUES / 0, KINDS), LABELS, r"values\[0, 0\] is -?inf, expected finite numbers"),
        ((VALUES.double() * 1e300, KINDS), LABELS, r"values\[0, 0\] is -?inf, expected finite"),
        ((VALUES, KINDS - 10), LABELS, r"kinds\[0\] is -\d+, expected 0 <= value <= 5$"),
        ((VALUES, KINDS + 6), LABELS, r"kinds\[0\] is \d+, expected 0 <= value <= 5$"),
        (
            (VALUES, KINDS),
            LABELS + 3,
            r"labels\[0\] is \d, expected 0 <= value <= 2, or -100 for no label",
        ),
        (
            (VALUES.to_sparse(), KINDS),
            LABELS,
            "values is a tensor on cpu of layout torch.sparse",
        ),
        ((VALUES.to("meta"), KINDS), LABELS, "values is a tensor on meta of layout"),
        ((VALUES, KINDS), LABELS * 0 - 100, "every label is an ignored one"),
    ],
)
def test_wrong_inputs_are_refused(
    session: Session, inputs: Any, targets: Any, message: str
) -> None:
    before = session.state
    with pytest.raises(InputError, match=message):
        session.step(inputs, targets, 0.1)
    with pytest.raises(InputError, match=message):
        session.evaluate(inputs, targets)
    assert all(torch.equal(session.state[name], tensor) for name, tensor in before.items())
    assert session.num_steps == 0


def test_float_targets_ignore_nan() -> None:
    target = Tensor("y", "target", (3, 1), "float32", 0, 1, "nan")
    value = torch.tensor([[0.5], [math.nan]])
    (prepared,) = prepare(value, [target])
    assert counts(prepared, target)
    assert not counts(prepared[1:], target)
    assert pad(prepared, target, 3)[2].isnan().all()
    for wrong, message in ((1.5, "expected 0 <= value <= 1, or nan"), (math.inf, "finite")):
        with pytest.raises(InputError, match=message):
            prepare(torch.full((1, 1), wrong), [target])


def test_numbers_may_be_finite_though_their_sum_is_not() -> None:
    large = torch.full((4,), 3e38)
    assert not are_finite([torch.ones(2), large])
    assert all_finite(large)
    assert not all_finite(torch.tensor([1.0, float("nan")]))
    assert are_finite([torch.ones(2), torch.zeros(0)])
