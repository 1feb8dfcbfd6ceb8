"""Each family of the table trains as in eager PyTorch, with each kind of plan."""

from pathlib import Path
from typing import Final

import pytest
import torch

from pockmobile.capture import describe_layers, export_forward
from pockmobile.plan import resolve_plan
from pockmobile.targets import TARGETS
from tests.families import FAMILIES, PLANS, family_subject
from tests.layer_cases import TOLERANCE, train

_LEAST_DELEGATED: Final = 0.95
_SELECTED: Final = (
    ("bert", "full", "xnnpack"),
    ("albert", "sparse:1:1", "xnnpack"),
    ("gpt2", "lora:4", "xnnpack"),
    ("gemma2", "full", "xnnpack"),
    ("t5", "sparse:1:1", "xnnpack"),
    ("whisper", "full", "portable"),
    ("clip", "sparse:1:1", "xnnpack"),
    ("siglip", "sparse:1:1", "xnnpack"),
    ("resnet-bottleneck", "lora:4", "xnnpack"),
    ("convnext", "sparse:1:1", "xnnpack"),
)
"""One of each kind; the others are compared in the long matrix."""

_ALL: Final = [
    (name, plan, target) for name in FAMILIES for plan in PLANS for target in TARGETS
]


def _trains(name: str, plan: str, target: str, folder: Path) -> None:
    outcome = train(family_subject(name, plan), target, folder)
    assert outcome.error <= TOLERANCE
    if target == "xnnpack":
        assert outcome.share_delegated >= _LEAST_DELEGATED


@pytest.mark.parametrize(("name", "plan", "target"), _SELECTED)
def test_a_family_trains(name: str, plan: str, target: str, tmp_path: Path) -> None:
    _trains(name, plan, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plan", "target"), [case for case in _ALL if case not in _SELECTED]
)
def test_every_family_trains(name: str, plan: str, target: str, tmp_path: Path) -> None:
    _trains(name, plan, target, tmp_path)


_ATTENTION: Final = [f"attention.{part}_proj" for part in "qkvo"]


@pytest.mark.parametrize(
    ("name", "block", "weights"),
    [
        ("vit", "vit.layers.1", [*_ATTENTION, "mlp.fc1"]),
        # One block, gone through twice.
        (
            "albert",
            "albert.encoder.albert_layer_groups.0.albert_layers.0",
            [*(f"attention.{part}" for part in ("query", "key", "value", "dense")), "ffn"],
        ),
        # Products with a weight as it is, and queries, keys and values in one.
        ("gpt2", "transformer.h.1", ["attn.c_attn", "attn.c_proj", "mlp.c_fc"]),
        # Two attentions in a block, before one feed-forward layer.
        (
            "t5",
            "decoder.block.1",
            [
                *(f"layer.0.SelfAttention.{part}" for part in "qkvo"),
                *(f"layer.1.EncDecAttention.{part}" for part in "qkvo"),
                "layer.2.DenseReluDense.wi",
            ],
        ),
        # Blocks in stages.
        ("resnet", "resnet.encoder.stages.1.layers.0", ["layer.0.convolution"]),
        ("convnext", "convnext.encoder.stages.1.layers.0", ["pwconv1"]),
        (
            "mobilevit",
            "mobilevit.encoder.layer.4.transformer.layer.2",
            [
                *(f"attention.attention.{part}" for part in ("query", "key", "value")),
                "attention.output.dense",
                "intermediate.dense",
            ],
        ),
    ],
)
def test_sparse_knows_a_block_by_structure(name: str, block: str, weights: list[str]) -> None:
    inside = f"model.{block}."
    chosen = [name for name in _chosen(name, "sparse:1:1") if name.startswith(inside)]
    found = [name for name in chosen if name.endswith(".weight")]
    assert found == [f"{inside}{weight}.weight" for weight in weights]


def test_each_tower_has_its_head_and_its_last_blocks() -> None:
    chosen = _chosen("clip", "sparse:1:1")
    for tower, head in (
        ("vision_model", "visual_projection"),
        ("text_model", "text_projection"),
    ):
        assert f"model.{head}.weight" in chosen
        assert f"model.{tower}.encoder.layers.1.mlp.fc1.weight" in chosen
        assert not any(name.startswith(f"model.{tower}.encoder.layers.0") for name in chosen)


def test_a_preset_gives_no_adapter_to_what_is_too_small_for_it() -> None:
    assert not any("squeeze_excite" in name for name in _chosen("efficientnet", "lora:4"))
    assert any(
        "expand_conv.weight.lora_a" in name for name in _chosen("efficientnet", "lora:4")
    )


def _chosen(name: str, plan: str) -> list[str]:
    subject = family_subject(name, plan)
    inputs, _ = subject.batch(torch.Generator().manual_seed(0))
    return list(
        resolve_plan(plan, describe_layers(export_forward(subject.model, inputs))).update
    )
