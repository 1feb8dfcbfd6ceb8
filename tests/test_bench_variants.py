"""The variants of the benchmark: what each trains, of what it is made, and for how long."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import nn

from pockmobile import passes
from pockmobile.models import mobilenet_v2
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.passes import NarrowGradients, SplitOneHot, run_passes
from pockmobile.pipeline import arranging, rewriting
from pockmobile.targets import resolve_target
from scripts.benchmark.eager import freeze_rest, keep_part
from scripts.benchmark.measure import num_steps_of_round
from scripts.benchmark.our_export import export_ours
from scripts.benchmark.results import agree
from scripts.benchmark.stock_export import export_stock, untie
from scripts.benchmark.variants import (
    BESIDE_PEERS,
    COMMON,
    PASSES,
    VARIANTS,
    WITHOUT,
    Variant,
    VariantError,
)
from scripts.benchmark.works import WORKS, Work, settled_model

ROOT: Final = Path(__file__).resolve().parent.parent
TINY: Final = WORKS["tiny_lm-8"]


def test_every_process_builds_the_same_model() -> None:
    work = Work("small", lambda: mobilenet_v2(0.35, 4), (3, 32, 32), 4, "full", 0.1)
    statistics = work.statistics()
    torch.manual_seed(99)
    first, second = settled_model(work, statistics), settled_model(work, statistics)
    state = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not first.training
    for a, b in zip(work.batch(3), work.batch(3), strict=True):
        assert torch.equal(a, b)
    # Without the statistics this net says the same of all images, and only its bias learns.
    inputs = work.batch(8)[0]
    assert first(inputs).std(0).max() > 0.01 > 1e4 * work.random_model()(inputs).std(0).max()


def test_only_the_parts_of_a_plan_are_trained() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    leaves = freeze_rest(model, {"0.weight": (0, 1, 3), "1.bias": None})
    assert [part for _, part in leaves] == [(0, 1, 3), None]
    assert leaves[0][0] is model[0].weight
    assert leaves[1][0] is model[1].bias
    trained = {name for name, leaf in model.named_parameters() if leaf.requires_grad}
    assert trained == {"0.weight", "1.bias"}
    model(torch.ones(5, 3)).square().sum().backward()
    whole = model[0].weight.grad.clone()
    keep_part(model[0].weight, (0, 1, 3))
    assert torch.equal(model[0].weight.grad[1:3], whole[1:3])
    assert model[0].weight.grad[[0, 3]].abs().max() == 0 < whole[[0, 3]].abs().max()
    with pytest.raises(VariantError, match=r"the plan trains 0\.weight\.lora_a, which the"):
        freeze_rest(model, {"0.weight.lora_a": None})


def test_a_parameter_that_a_delegate_took_in_is_not_among_those_returned() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)
    batch = torch.ones(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    everything = {f"model.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    portable = export_stock(nn.Sequential(*layers), batch, "")
    assert set(portable.parts) == everything
    delegated = export_stock(nn.Sequential(*layers), batch, "xnnpack")
    assert set(delegated.parts) == everything - {"model.0.bias"}
    assert portable.planned_bytes > 0


def test_tied_parameters_are_told_apart() -> None:
    model = TransformerLM(num_tokens=16, context=4, width=8, num_blocks=1, num_heads=2)
    before = model(torch.arange(4)[None])
    assert untie(model) == [("embedding.weight", "head.weight")]
    assert model.head.weight is not model.embedding.weight
    assert torch.equal(model(torch.arange(4)[None]), before)
    assert untie(model) == []


@pytest.mark.parametrize("engine", ["ours", "eager"])
def test_a_worker_imports_what_its_variant_needs(engine: str) -> None:
    """Its imports are the baseline of its memory, and the import of none comes later."""
    code = (
        "import sys; from importlib import import_module; "
        "from scripts.benchmark.worker import ENGINES; "
        f"import_module(ENGINES[{engine!r}]).load_late(); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(found.stdout.split())
    compilers = {"pockmobile.compiler", "pockmobile.capture", "pockmobile.passes"}
    assert not modules & compilers
    assert ("pockmobile.session" in modules) == (engine == "ours")
    assert ("pockmobile.models" in modules) == (engine == "eager")
    assert any(name.startswith("executorch") for name in modules) == (engine == "ours")


def test_every_variant_is_named_by_what_it_trains() -> None:
    for name, variant in VARIANTS.items():
        assert isinstance(variant, Variant)
        assert variant.has_program == (variant.engine != "eager")
        is_own = name in ("ours", "ours-split", "ours-int8", "ours-int4")
        is_ours = is_own or name.startswith("ours-without-")
        assert (variant.trains == "plan") == (is_ours or name.endswith("-same"))
        for part in ("last", "head"):
            is_named = name.endswith(f"-{part}") and not variant.without
            assert (variant.trains == part) == is_named
        # Weights in int8 and int4 have losses of their own.
        assert (variant.oracle in VARIANTS) == (variant.frozen_weights == "fp32")
        if variant.oracle:
            assert VARIANTS[variant.oracle].trains == variant.trains
    assert {*COMMON, *WITHOUT, *BESIDE_PEERS} == {*VARIANTS}


def test_every_pass_that_can_be_left_out_is_one_of_the_compiler() -> None:
    target = resolve_target("xnnpack")
    own = (SplitOneHot(), NarrowGradients(), *rewriting(target), *arranging(target))
    assert {*PASSES} <= {item.name for item in own}
    # What its target's operators and the plan need is not among them.
    assert not {"decompose", "apply-plan", "append-optimizer", "canonicalize"} & {*PASSES}


def test_a_pass_is_left_out_of_one_export_alone() -> None:
    model, batch = TINY.random_model(), TINY.batch(2)
    whole = export_ours(model, batch, TINY.plan, split=False, frozen_weights="fp32")
    left_out = {"split": False, "frozen_weights": "fp32", "without": "gather-log-softmax"}
    less = export_ours(model, batch, TINY.plan, **left_out)
    assert less.parts == whole.parts
    assert b"gather-log-softmax" in whole.buffer
    assert b"gather-log-softmax" not in less.buffer
    with pytest.raises(VariantError, match="fold-scale changes nothing here"):
        export_ours(model, batch, TINY.plan, **{**left_out, "without": "fold-scale"})
    assert passes.run_passes is run_passes


def test_rows_of_tokens_have_a_label_each_where_the_work_says_so() -> None:
    inputs, labels = WORKS["tiny_encoder-8"].batch(3)
    assert (inputs.shape, labels.shape) == ((3, 8), (3,))
    assert inputs.max() >= WORKS["tiny_encoder-8"].num_labels > labels.max()
    assert TINY.batch(3)[1].shape == (3, 8)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.001, 100), (0.0001, 100), (0.03, 3), (0.1, 1), (9.0, 1)]
)
def test_a_round_is_filled_with_steps(seconds: float, expected: int) -> None:
    assert num_steps_of_round(seconds) == expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 1.5, 1.0, 0.5], True),
        ([2.0, 1.46, 1.04, 0.9], True),  # later they may drift apart
        ([2.0, 1.44, 1.0, 0.5], False),
        ([2.0, 1.5, 1.06, 0.5], False),
        ([2.1, 1.5, 1.0, 0.5], False),
        ([2.0, float("nan"), 1.0, 0.5], False),
    ],
)
def test_losses_agree_within_a_share_of_the_fall(losses: list[float], expected: bool) -> None:
    assert agree(losses, [2.0, 1.5, 1.0, 0.5]) is expected
