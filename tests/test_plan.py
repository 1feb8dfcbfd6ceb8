"""Plans: presets on every model as a human would count, plan files, and their errors."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pockmobile import models
from pockmobile.capture import describe_layers, export_forward
from pockmobile.capture.blocks import blocks_of
from pockmobile.errors import PlanError
from pockmobile.models.llama import Llama
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.plan import Layer, Slice, UpdatePlan, check_plan, resolve_plan

IMAGES = torch.zeros(1, 3, 32, 32)
TOKENS = torch.zeros(1, 8, dtype=torch.int64)
CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "mlp": (models.mlp, torch.zeros(1, 16)),
    "residual_cnn": (models.residual_cnn, IMAGES),
    "mobilenet_v1": (models.mobilenet_v1, IMAGES),
    "mobilenet_v2": (lambda: models.mobilenet_v2(0.35), IMAGES),
    "resnet18": (models.resnet18, IMAGES),
    "resnet50": (models.resnet50, IMAGES),
    "lm": (lambda: TransformerLM(num_tokens=50, width=16), TOKENS),
    "llama": (lambda: Llama(num_tokens=50, width=16, hidden=24, num_blocks=3), TOKENS),
}


@cache
def layers_of(name: str) -> tuple[Layer, ...]:
    make, inputs = CASES[name]
    return describe_layers(export_forward(make(), (inputs,)))


@cache
def parameters_of(name: str) -> list[str]:
    return [parameter for parameter, _ in CASES[name][0]().named_parameters()]


def names(model: str, plan: str) -> list[str]:
    return list(resolve_plan(plan, layers_of(model)).update)


def block_names(model: str) -> list[str]:
    """The blocks, as far as the presets go: what holds the head counts as none."""
    head = layers_of(model)[-1].block
    found = dict.fromkeys(layer.block for layer in layers_of(model))
    return [block for block in found if block not in ("", head)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mlp", ["layers.0", "layers.1"]),
        ("residual_cnn", ["blocks.0", "blocks.1"]),
        (
            "mobilenet_v1",
            [
                *(f"stage1.{index}" for index in range(1, 6)),
                *(f"stage2.{index}" for index in range(6)),
                *(f"stage3.{index}" for index in range(2)),
            ],
        ),
        ("mobilenet_v2", [f"features.{index}" for index in range(1, 18)]),
        ("resnet18", [f"layer{stage}.{index}" for stage in range(1, 5) for index in range(2)]),
        (
            "resnet50",
            [
                f"layer{stage}.{index}"
                for stage, num in enumerate((3, 4, 6, 3), start=1)
                for index in range(num)
            ],
        ),
        ("lm", [f"blocks.{index}" for index in range(4)]),
        ("llama", [f"blocks.{index}" for index in range(3)]),
    ],
)
def test_blocks_are_those_that_a_human_counts(model: str, expected: list[str]) -> None:
    assert block_names(model) == expected


@pytest.mark.parametrize("model", CASES)
def test_full_names_every_parameter_once(model: str) -> None:
    assert sorted(names(model, "full")) == sorted(parameters_of(model))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mlp", ["head.weight", "head.bias"]),
        ("mobilenet_v2", ["classifier.1.weight", "classifier.1.bias"]),
        ("resnet50", ["fc.weight", "fc.bias"]),
        # Tied: one parameter with two uses.
        ("lm", ["embedding.weight"]),
    ],
)
def test_head_is_the_last_layer(model: str, expected: list[str]) -> None:
    assert names(model, "head") == expected


@pytest.mark.parametrize("model", CASES)
def test_bias_names_every_bias_and_the_head(model: str) -> None:
    expected = {name for name in parameters_of(model) if name.endswith("bias")}
    assert set(names(model, "bias")) == expected | set(names(model, "head"))


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("mobilenet_v2", "features.16.conv.0.0.weight"),
        ("resnet18", "layer4.0.conv1.weight"),
        ("lm", "blocks.2.attention_norm.weight"),
    ],
)
def test_last_names_everything_from_a_block_on(model: str, first: str) -> None:
    parameters = parameters_of(model)
    rest = set(parameters[parameters.index(first) :]) | set(names(model, "head"))
    assert set(names(model, "last:2")) == rest


def test_sparse_on_mobilenet_is_pockengines_hand_scheme() -> None:
    found = names("mobilenet_v2", "sparse:7:2")
    weights = {name for name in found if ".conv." in name and name.endswith("0.0.weight")}
    assert weights == {"features.16.conv.0.0.weight", "features.17.conv.0.0.weight"}
    norms = [
        f"features.{block}.conv.{part}.bias"
        for block in range(11, 18)
        for part in ("0.1", "1.1", "3")
    ]
    head = ["classifier.1.weight", "classifier.1.bias"]
    assert set(found) == {*weights, *norms, *head}


def test_sparse_takes_the_first_full_convolution_of_a_block_without_expansion() -> None:
    assert "features.1.conv.1.weight" in names("mobilenet_v2", "sparse:0:17")
    assert "features.1.conv.0.0.weight" not in names("mobilenet_v2", "sparse:0:17")
    # Where a weight is trained, the bias of the norm that follows it is too.
    assert "features.1.conv.2.bias" in names("mobilenet_v2", "sparse:0:17")


def test_sparse_on_resnet() -> None:
    found = names("resnet50", "sparse:0:1")
    assert found == ["layer4.2.conv1.weight", "layer4.2.bn1.bias", "fc.weight", "fc.bias"]


def test_sparse_on_a_language_model_trains_attention_and_the_first_feed_forward() -> None:
    linears = [
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp.0",
    ]
    weights = {f"blocks.3.{linear}.weight" for linear in linears}
    biases = {f"blocks.3.{linear}.bias" for linear in linears}
    assert set(names("lm", "sparse:0:1")) == {"embedding.weight"} | weights | biases
    rest = {"blocks.3.mlp.2.bias", "blocks.3.attention_norm.bias", "blocks.3.mlp_norm.bias"}
    assert set(names("lm", "sparse:1:1")) == {"embedding.weight"} | weights | biases | rest


def test_sparse_takes_both_first_layers_of_a_gated_feed_forward() -> None:
    linears = ["attention.query", "attention.key", "attention.value", "attention.output"]
    expected = {f"blocks.2.{linear}.weight" for linear in [*linears, "mlp.gate", "mlp.up"]}
    assert set(names("llama", "sparse:1:1")) == {"embedding.weight"} | expected


@pytest.mark.parametrize(("num_tokens", "is_trained"), [(16_384, False), (16_383, True)])
def test_the_head_of_a_large_vocabulary_stays_frozen(num_tokens: int, is_trained: bool) -> None:
    sizes = {"context": 4, "width": 8, "num_blocks": 1, "num_heads": 2, "num_key_heads": 1}
    model = Llama(num_tokens=num_tokens, is_tied=False, **sizes)
    layers = describe_layers(export_forward(model, (torch.zeros(1, 4, dtype=torch.int64),)))
    assert {layer.path: layer.num_outputs for layer in layers}["head"] == num_tokens
    for plan in ("lora:2", "sparse:1:1"):
        assert ("head.weight" in resolve_plan(plan, layers).update) is is_trained, plan
    assert list(resolve_plan("head", layers).update) == ["head.weight"]


def blocks_of_weights(*paths: str) -> list[str]:
    layers = [Layer(path, "", "linear", f"{path}.weight", "") for path in paths]
    return blocks_of(layers)


def test_a_stage_holds_blocks_where_its_parts_are_alike() -> None:
    stages = ["stages.0.down", *(f"stages.0.layers.{n}.{p}" for n in (0, 1) for p in "ab")]
    assert blocks_of_weights(*stages) == [""] + 2 * ["stages.0.layers.0"] + 2 * [
        "stages.0.layers.1"
    ]
    # A shortcut in the first of them alone does not make them different.
    shortcut = ["s.0.l.0.a", "s.0.l.0.b", "s.0.l.0.cut", "s.1.l.0.a", "s.1.l.0.b"]
    assert blocks_of_weights(*shortcut) == 3 * ["s.0.l.0"] + 2 * ["s.1.l.0"]


def test_parts_of_a_block_that_are_numbered_but_differ_are_no_blocks() -> None:
    parts = ["b.0.layer.0.q", "b.0.layer.0.k", "b.0.layer.1.up", "b.0.layer.1.down"]
    assert blocks_of_weights(*parts) == 4 * ["b.0"]


class _TwoTowers(nn.Module):
    """Images and words, each with a block or two and a head, and what nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in "ab")
        self.right = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in "a")
        self.left_head, self.right_head = nn.Linear(4, 3), nn.Linear(4, 3)
        self.scale, self.extra = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left = self.left_head(self.left[1](self.left[0](x)))
        right = self.right_head(self.right[0](y))
        return left * self.scale @ right.t(), self.extra(right)


def test_towers_have_a_head_each() -> None:
    inputs = (torch.zeros(2, 4), torch.zeros(2, 4))
    layers = describe_layers(export_forward(_TwoTowers(), inputs))
    heads = resolve_plan("head", layers).update
    assert {name.rpartition(".")[0] for name in heads} == {"left_head", "right_head"}
    last = set(resolve_plan("last:1", layers).update)
    assert {"left.1.0.weight", "right.0.0.weight", "scale"} <= last
    assert not any(name.startswith("left.0") for name in last)
    with pytest.raises(PlanError, match=r"asks for the last 2 blocks, the model has 1$"):
        resolve_plan("last:2", layers)


def test_parameters_that_require_no_gradient_are_in_no_preset() -> None:
    model = models.mlp()
    model.layers[0].requires_grad_(False)
    layers = describe_layers(export_forward(model, (torch.zeros(1, 16),)))
    assert list(resolve_plan("full", layers).update) == [
        "layers.1.weight", "layers.1.bias", "head.weight", "head.bias",
    ]  # fmt: skip


def test_a_preset_stays_in_the_plan() -> None:
    plan = resolve_plan("last:1", layers_of("mlp"))
    assert plan.preset == "last:1"
    assert resolve_plan(plan, ()) is plan


@pytest.mark.parametrize("plan", ["all", "last", "last:x", "last:²", "sparse:1", "head:1", ""])
def test_unknown_presets_list_the_known_ones(plan: str) -> None:
    with pytest.raises(
        PlanError, match=r"unknown plan '.*': expected full, head, bias, last:N"
    ):
        resolve_plan(plan, layers_of("mlp"))


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(PlanError, match=r"asks for the last 9 blocks, the model has 4$"):
        resolve_plan("last:9", layers_of("lm"))


def test_a_model_without_head() -> None:
    norm = Layer("norm", "", "norm", "norm.weight", "norm.bias")
    with pytest.raises(
        PlanError, match="no linear or convolution layer, so no head; write a plan"
    ):
        resolve_plan("head", [norm])


SHAPES = {"head.weight": (4, 8), "head.bias": (4,), "scale": ()}


@pytest.mark.parametrize(
    "part", [None, Slice(0, 0, 4), Slice(0, 1, 2), Slice(1, 0, 8), Slice(1, 7, 8)]
)
def test_plans_that_fit(part: Slice | None) -> None:
    check_plan(UpdatePlan({"head.weight": part, "head.bias": None}), SHAPES)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({}, "the plan trains nothing; name at least one parameter"),
        (
            {"head.wieght": None},
            r"'head.wieght', which the model cannot train: did you mean head.weight",
        ),
        ({"head.weight": Slice(2, 0, 1)}, r"along dim 2; a slice is along 0 or 1 of \[4, 8\]"),
        ({"head.weight": Slice(-1, 0, 1)}, r"along dim -1; a slice is along 0 or 1"),
        ({"head.bias": Slice(1, 0, 1)}, r"head.bias along dim 1; .* of \[4\]"),
        ({"scale": Slice(0, 0, 1)}, r"scale along dim 0; .* of \[\]"),
        ({"head.weight": Slice(0, 2, 5)}, "slice 2:5 of head.weight is not inside 0:4"),
        ({"head.weight": Slice(0, 2, 2)}, "slice 2:2 of head.weight is not inside 0:4"),
        ({"head.weight": Slice(1, -1, 2)}, "slice -1:2 of head.weight is not inside 0:8"),
    ],
)
def test_plans_that_do_not_fit(update: dict[str, Slice | None], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(UpdatePlan(update), SHAPES)


def test_a_plan_file_reads_as_it_was_written(tmp_path: Path) -> None:
    plan = UpdatePlan({"a.weight": Slice(1, 0, 64), "a.bias": None}, "sparse:1:1")
    plan.save(tmp_path / "plan.json")
    assert UpdatePlan.load(tmp_path / "plan.json") == plan
    assert resolve_plan(tmp_path / "plan.json", ()) == plan
    assert resolve_plan(str(tmp_path / "plan.json"), ()) == plan
    assert json.loads((tmp_path / "plan.json").read_text()) == {
        "format": 1,
        "preset": "sparse:1:1",
        "update": {"a.weight": {"dim": 1, "start": 0, "stop": 64}, "a.bias": None},
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], r"is a JSON object with \"format\": 1, found 'list'"),
        ({"update": {"a": None}}, "found None"),
        ({"format": 2, "update": {"a": None}}, r"with \"format\": 1, found 2"),
        ({"format": 1}, r"needs \"update\": {\"parameter name\": null or a slice}, found None"),
        ({"format": 1, "update": {}}, "or a slice}, found {}"),
        ({"format": 1, "update": ["a"]}, r"or a slice}, found \['a'\]"),
        ({"format": 1, "preset": 7, "update": {"a": None}}, "must be null or a name, found 7"),
        (
            {"format": 1, "update": {"a": 1}},
            "a must be null or have dim, start and stop, found 1",
        ),
        (
            {"format": 1, "update": {"a": {"dim": 0, "start": 0}}},
            "a must be null or have dim, start and stop",
        ),
        (
            {"format": 1, "update": {"a": {"dim": 0, "start": 0, "stop": 1.5}}},
            r"a must have whole numbers, found {.*1\.5}",
        ),
        (
            {"format": 1, "update": {"a": {"dim": 0, "start": False, "stop": 1}}},
            "a must have whole numbers",
        ),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, data: Any, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=message) as caught:
        UpdatePlan.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the plan .*no\.json: No such file"):
        resolve_plan(str(tmp_path / "no.json"), ())
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(PlanError, match=r"text\.json is no JSON: Expecting"):
        UpdatePlan.load(tmp_path / "text.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"bytes\.json is no JSON"):
        UpdatePlan.load(tmp_path / "bytes.json")
