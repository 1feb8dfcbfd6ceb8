"""Each layer and loss of the table trains as in eager PyTorch, on every target."""

from pathlib import Path

import pytest

from pockmobile.errors import UnsupportedOperatorError
from tests.layer_cases import (
    TOLERANCE,
    compile_subject,
    layer_subject,
    layers_subject,
    loss_subject,
    train,
)
from tests.layers import FAMILIES, LAYERS, REFUSED
from tests.losses import LOSSES
from tests.parity_cases import TARGETS

_MOST = 16
"""Layers of one program: more take longer than apart."""


_OF_PORTABLE = [
    "elu", "prelu-channels", "group_norm", "conv1d", "conv_transpose2d", "avg_pool2d-inside",
    "max_pool2d-ceil", "upsample-bilinear", "embedding_bag-mean", "attention-causal", "lstm",
    "pad-replicate",
]  # fmt: skip
"""One of each kind; the others are compared in the long matrix."""


def _groups() -> dict[str, list[str]]:
    """Returns the layers of each family, a few together; those of tokens are apart."""
    groups: dict[str, list[str]] = {}
    for family, layers in FAMILIES.items():
        for of_tokens in (False, True):
            names = [name for name in layers if bool(LAYERS[name].num_values) is of_tokens]
            for start in range(0, len(names), _MOST):
                part = names[start : start + _MOST]
                groups[f"{family}: {part[0]} to {part[-1]}"] = part
    return groups


@pytest.mark.parametrize("names", _groups().values(), ids=_groups())
def test_layers_train_beside_each_other(names: list[str], tmp_path: Path) -> None:
    assert train(layers_subject(names), "xnnpack", tmp_path).error <= TOLERANCE


@pytest.mark.parametrize("name", _OF_PORTABLE)
def test_a_layer_trains_on_portable_kernels(name: str, tmp_path: Path) -> None:
    assert train(layer_subject(name), "portable", tmp_path).error <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_trains(name: str, target: str, tmp_path: Path) -> None:
    assert train(layer_subject(name), target, tmp_path).error <= TOLERANCE


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains(name: str, tmp_path: Path) -> None:
    assert train(loss_subject(name), "xnnpack", tmp_path).error <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains_on_portable_kernels(name: str, tmp_path: Path) -> None:
    assert train(loss_subject(name), "portable", tmp_path).error <= TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_target_trains_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"layer, .*layers.py:\d+"):
        compile_subject(layer_subject(name), "portable")
