"""One-hot labels stay out of the gradient of a large head."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as func

from pockmobile.graph import JointGraph
from pockmobile.passes import Canonicalize, RemoveNoops, SplitOneHot
from tests.passes.graphs import apply, assert_close, aten, operators, run, trace

ROWS, CLASSES, WIDTH = 6, 600, 8
PARAMETERS = {"w": torch.randn(CLASSES, WIDTH), "b": torch.randn(CLASSES)}
INPUTS = {
    "h": torch.randn(ROWS, WIDTH),
    "labels": torch.tensor([[3], [0], [3], [599], [77], [1]]),
    "scale": torch.tensor([[1.0], [0.0], [1.0], [1.0], [2.0], [1.0]]),
}


def gradients(p: Tensor, one_hot: Tensor, h: Tensor, w: Tensor) -> dict[str, Tensor]:
    error = p - one_hot
    return {
        "grad.w": error.t() @ h,
        "grad.b": error.sum([0]),
        "output": error @ w,
    }


def one_hot(labels: Tensor, values: Tensor, classes: int = CLASSES) -> Tensor:
    zeros = torch.full((*labels.shape[:-1], classes), 0.0)
    return zeros.scatter(-1, labels, values)


def plain(w: Tensor, b: Tensor, h: Tensor, labels: Tensor, scale: Tensor) -> dict[str, Tensor]:
    return gradients((h @ w.t() + b).softmax(-1), one_hot(labels, scale * 0 + 1), h, w)


def scaled(w: Tensor, b: Tensor, h: Tensor, labels: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """As of a mean over labels of which some are ignored."""
    p = (h @ w.t() + b).softmax(-1)
    error = (p * scale - one_hot(labels, scale)) * scale.sum().reciprocal()
    return {"grad.w": error.t() @ h, "grad.b": error.sum([0]), "output": error @ w}


def sequences(
    w: Tensor, b: Tensor, h: Tensor, labels: Tensor, scale: Tensor
) -> dict[str, Tensor]:
    """Rows in two dimensions, as those of a language model."""
    p = (h @ w.t() + b).reshape(2, 3, CLASSES).softmax(-1)
    weight = scale.reshape(2, 3, 1)
    error = p * weight - one_hot(labels.reshape(2, 3, 1), weight)
    error = error.reshape(ROWS, CLASSES)
    return {
        "grad.w": error.t() @ h,
        "grad.b": error.sum([0], keepdim=True),
        "output": error @ w,
    }


Function = Callable[..., dict[str, Tensor]]


def canonical(function: Function) -> JointGraph:
    graph = trace(function, INPUTS, parameters=PARAMETERS)
    return apply(RemoveNoops(), apply(Canonicalize(), graph))


@pytest.mark.parametrize("function", [plain, scaled, sequences])
def test_probabilities_and_labels_are_multiplied_apart(function: Function) -> None:
    graph = canonical(function)
    changed = apply(SplitOneHot(), graph)
    assert "scatter" in operators(graph)
    assert "scatter" not in operators(changed)
    assert operators(changed).count("index_put") == 2
    assert operators(changed).count("embedding") == 1
    assert_close(graph, changed, INPUTS, tolerance=1e-5)
    other = {
        **INPUTS,
        "labels": torch.randint(CLASSES, (ROWS, 1)),
        "h": torch.randn(ROWS, WIDTH),
    }
    assert_close(graph, changed, other, tolerance=1e-5)
    assert apply(SplitOneHot(), changed) is changed


def test_nothing_of_the_size_of_the_logits_is_computed_beside_the_probabilities() -> None:
    changed = apply(RemoveNoops(), apply(SplitOneHot(), canonical(scaled)))
    large = [
        node.target
        for node in changed.nodes
        if node.op == "call_function" and node.meta["val"].numel() == ROWS * CLASSES
    ]
    assert set(large) == {
        aten.mm.default, aten.add.Tensor, aten._softmax.default, aten.permute_copy.default,
    }  # fmt: skip


def few(w: Tensor, b: Tensor, h: Tensor, labels: Tensor, scale: Tensor) -> dict[str, Tensor]:
    p = (h @ w[:9].t() + b[:9]).softmax(-1)
    return {"output": (p - one_hot(labels.clamp(max=8), scale, 9)).sum([0])}


def read_whole(
    w: Tensor, b: Tensor, h: Tensor, labels: Tensor, scale: Tensor
) -> dict[str, Tensor]:
    error = (h @ w.t() + b).softmax(-1) - one_hot(labels, scale)
    return {"grad.w": error.t() @ h, "output": error.tanh()}


@pytest.mark.parametrize("function", [few, read_whole])
def test_other_one_hot_labels_stay(function: Function) -> None:
    graph = canonical(function)
    assert apply(SplitOneHot(), graph) is graph


def test_a_frozen_head_that_the_host_has_not_stays() -> None:
    def frozen(h: Tensor, labels: Tensor, scale: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return plain(w, b, h, labels, scale)["output"]

    graph = apply(RemoveNoops(), trace(frozen, INPUTS, constants=PARAMETERS))
    assert apply(SplitOneHot(), graph) is graph


def test_it_is_the_gradient_of_autograd() -> None:
    tensors: Mapping[str, Tensor] = {**PARAMETERS, "h": INPUTS["h"]}
    values = {key: value.clone().requires_grad_() for key, value in tensors.items()}
    loss = func.cross_entropy(
        values["h"] @ values["w"].t() + values["b"], INPUTS["labels"][:, 0], reduction="sum"
    )
    expected = torch.autograd.grad(loss, [values["w"], values["b"], values["h"]])
    found = run(apply(SplitOneHot(), canonical(plain)), INPUTS)
    for name, grad in zip(("grad.w", "grad.b", "output"), expected, strict=True):
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-5)
