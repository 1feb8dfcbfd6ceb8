"""What the capture traces in the place of layers has their values and their gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor, nn

from pockmobile.capture import masks, padding, plain, resampling, semantics

_aten = torch.ops.aten
IMAGE = (2, 3, 7, 5)


def assert_same(
    found: Callable[..., Tensor], expected: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """Asserts that two functions have the same values and gradients."""
    results = []
    for function in (found, expected):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        value = function(*leaves)
        weight = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        results.append([value.detach(), *torch.autograd.grad((value * weight).sum(), wanted)])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


AVERAGES: list[tuple[Any, ...]] = [
    (2,),
    ([3, 2], [1, 2], [1, 0]),
    (3, 2, 1, True),
    (3, 2, 1, True, False),
    (3, 2, 1, False, False),
    (2, 3, 0, True),
    (2, 2, 0, False, True, 3),
    (3, 2, 1, True, True, 5),
]


@pytest.mark.parametrize("given", AVERAGES, ids=str)
def test_average_pooling(given: tuple[Any, ...]) -> None:
    numbers = [[n, n] if isinstance(n, int) and i < 3 else n for i, n in enumerate(given)]
    assert_same(
        lambda x: resampling.avg_pool2d(x, *given),
        lambda x: _aten.avg_pool2d.default(x, *numbers),
        torch.randn(IMAGE),
    )
    if len(given) < 6 and isinstance(given[0], int):
        assert_same(
            lambda x: resampling.avg_pool1d(x, *given),
            lambda x: func.avg_pool1d(x, *given),
            torch.randn(2, 3, 7),
        )


@pytest.mark.parametrize("given", [(2,), (2, 2, 0, 1, True), (3, 2, 1, 1, True), (2, 3, 1, 2)])
def test_max_pooling(given: tuple[Any, ...]) -> None:
    assert_same(
        lambda x: resampling.max_pool2d(x, *given),
        lambda x: func.max_pool2d(x, *given),
        torch.randn(IMAGE),
    )


@pytest.mark.parametrize("sizes", [(1, 1), (7, 5), (3, 2), (7, 1), (9, 4)])
def test_adaptive_pooling(sizes: tuple[int, int]) -> None:
    x = torch.randn(IMAGE)
    assert_same(
        lambda x: resampling.adaptive_avg_pool2d(x, sizes),
        lambda x: func.adaptive_avg_pool2d(x, sizes),
        x,
    )
    assert_same(
        lambda x: resampling.adaptive_max_pool2d(x, sizes)[0],
        lambda x: func.adaptive_max_pool2d(x, sizes),
        x,
    )
    places = resampling.adaptive_max_pool2d(x, sizes)[1]
    assert torch.equal(places, func.adaptive_max_pool2d(x, sizes, return_indices=True)[1])


UPSAMPLING: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
    "nearest": (resampling.upsample_nearest, _aten.upsample_nearest2d.vec, ()),
    "exact": (resampling.upsample_nearest_exact, _aten._upsample_nearest_exact2d.vec, ()),
    "bilinear": (resampling.upsample_linear, _aten.upsample_bilinear2d.vec, (False,)),
    "corners": (resampling.upsample_linear, _aten.upsample_bilinear2d.vec, (True,)),
    "cubic": (resampling.upsample_cubic, _aten.upsample_bicubic2d.vec, (False,)),
    "cubic-corners": (resampling.upsample_cubic, _aten.upsample_bicubic2d.vec, (True,)),
    "smooth": (
        resampling.upsample_linear_smooth, _aten._upsample_bilinear2d_aa.vec, (False,)
    ),
    "cubic-smooth": (
        resampling.upsample_cubic_smooth, _aten._upsample_bicubic2d_aa.vec, (False,)
    ),
}  # fmt: skip
SIZES: list[tuple[Any, Any]] = [
    ((9, 10), None),
    ((14, 5), None),
    ((3, 2), None),
    (None, (2.0, 2.0)),
    (None, (1.5, 3.0)),
    (None, (0.5, 1.7)),
]


@pytest.mark.parametrize(("size", "factors"), SIZES)
@pytest.mark.parametrize("mode", UPSAMPLING)
def test_upsampling(mode: str, size: Any, factors: Any) -> None:
    rule, expected, given = UPSAMPLING[mode]
    assert_same(
        lambda x: rule(x, size, *given, factors),
        lambda x: expected(x, size, *given, factors),
        torch.randn(IMAGE),
    )


def test_upsampling_of_volumes() -> None:
    x = torch.randn(1, 2, 3, 4, 2)
    assert_same(
        lambda x: resampling.upsample_linear(x, (4, 5, 4), False),
        lambda x: func.interpolate(x, (4, 5, 4), mode="trilinear"),
        x,
    )
    assert_same(
        lambda x: resampling.upsample_nearest(x, None, (2.0, 1.5, 1.0)),
        lambda x: func.interpolate(x, scale_factor=(2.0, 1.5, 1.0)),
        x,
    )


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("pads", [(1, 2), (2, 0, 1, 3), (0, 1, 0, 0)])
def test_padding(mode: str, pads: tuple[int, ...]) -> None:
    x = torch.randn(IMAGE if len(pads) == 4 else (2, 3, 7))
    assert_same(lambda x: padding.pad(x, pads, mode), lambda x: func.pad(x, pads, mode=mode), x)


def test_the_larger_and_the_smaller_of_two() -> None:
    left = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 2.0]])
    right = torch.tensor([2.0, 2.0, 2.0])
    assert_same(semantics.maximum, torch.maximum, left, right)
    assert_same(semantics.minimum, torch.minimum, left, right)
    assert semantics.maximum(torch.tensor([1]), torch.tensor([2])).item() == 2


def test_cropping() -> None:
    x = torch.randn(IMAGE)
    for pads in ([-1, 2, 1, -2], [-1, -1], [0, -2, 3, 0]):
        assert torch.equal(padding.crop(x, pads, 0.5), func.pad(x, pads, value=0.5))
    assert padding.crop(x, [1, 0]) is NotImplemented


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("include_last", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_bags_of_any_sizes(mode: int, include_last: bool, padding_idx: int | None) -> None:
    indices = torch.tensor([3, 1, 1, 5, 2, 0, 4])
    offsets = torch.tensor([0, 3, 4, 7] if include_last else [0, 3, 4])
    weights = torch.rand(7) if mode == 0 else None
    given = (indices, offsets, False, mode, False, weights, include_last, padding_idx)
    assert_same(
        lambda table: plain.embedding_bag(table, *given)[0],
        lambda table: _aten.embedding_bag.padding_idx(table, *given)[0],
        torch.randn(6, 4),
    )


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False, "num_layers": 2},
    ],
    ids=str,
)
def test_recurrence(layer: type[nn.RNNBase], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = layer(3, 4, **options)
    _check_recurrence(model, torch.randn(5, 2, 3))
    if not options.get("batch_first"):
        _check_recurrence(model, torch.randn(5, 3))


def test_recurrence_by_other_cells() -> None:
    _check_recurrence(nn.RNN(3, 4, nonlinearity="relu"), torch.randn(5, 2, 3))
    _check_recurrence(nn.LSTM(3, 4, num_layers=2, proj_size=2), torch.randn(5, 2, 3))


def _check_recurrence(model: nn.RNNBase, x: Tensor) -> None:
    """Compares outputs and the last states, as the operator's rule has them."""

    def by_rule(x: Tensor) -> Tensor:
        program = torch.export.export(model, (x.detach(),), strict=False)
        interpreter = _Ruled(program.module())
        results = interpreter.run(x, enable_io_processing=False)
        return torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(results)])

    def eager(x: Tensor) -> Tensor:
        return torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(model(x))])

    assert_same(by_rule, eager, x)


class _Ruled(torch.fx.Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return semantics.RULES.get(target, target)(*args, **kwargs)


POINTS = torch.tensor([-25.0, -4.0, -2.9, -1.0, -0.3, 0.2, 0.7, 1.5, 2.9, 3.5, 30.0])
MASKED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "threshold": (
        lambda x: masks.threshold(x, 0.1, 5.0),
        lambda x: func.threshold(x, 0.1, 5.0),
    ),
    "softplus": (masks.softplus, func.softplus),
    "softplus-early": (
        lambda x: masks.softplus(x, 2.0, 1.0),
        lambda x: func.softplus(x, 2.0, 1.0),
    ),
    "log_sigmoid": (lambda x: masks.log_sigmoid(x)[0], func.logsigmoid),
    "celu": (lambda x: masks.celu(x, 0.7), lambda x: func.celu(x, 0.7)),
    "hardshrink": (masks.hardshrink, func.hardshrink),
    "softshrink": (masks.softshrink, func.softshrink),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_have_the_values(name: str) -> None:
    found, expected = MASKED[name]
    torch.testing.assert_close(found(POINTS), expected(POINTS), rtol=1e-6, atol=2e-7)


GRADIENTS: list[tuple[Any, tuple[Any, ...]]] = [
    (_aten.leaky_relu_backward.default, (POINTS, 0.1, False)),
    (_aten.hardsigmoid_backward.default, (POINTS,)),
    (_aten.hardswish_backward.default, (POINTS,)),
    (_aten.softplus_backward.default, (POINTS, 1.0, 20.0)),
    (_aten.softplus_backward.default, (POINTS, 2.0, 1.0)),
    (_aten.log_sigmoid_backward.default, (POINTS, torch.exp(-POINTS.abs()))),
    (_aten.hardshrink_backward.default, (POINTS, 0.5)),
    (_aten.softshrink_backward.default, (POINTS, 0.5)),
    (_aten.elu_backward.default, (0.7, 1.2, 1.0, False, POINTS)),
    (_aten.elu_backward.default, (0.7, 1.2, 1.0, True, func.elu(POINTS, 0.7) * 1.2)),
    (_aten._prelu_kernel_backward.default, (POINTS, torch.full_like(POINTS, 0.3))),
]


@pytest.mark.parametrize(("operator", "given"), GRADIENTS)
def test_masks_have_the_gradients(operator: Any, given: tuple[Any, ...]) -> None:
    grad = torch.linspace(-1.0, 2.0, len(POINTS))
    found, expected = masks.MASKS[operator](grad, *given), operator(grad, *given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 2), (2, 3)])
@pytest.mark.parametrize("dilation", [1, [2, 1]])
def test_padding_by_a_word(kernel: tuple[int, int], padding: str, dilation: Any) -> None:
    weight = torch.randn(4, 3, *kernel)
    assert_same(
        lambda x, w: plain.padded_conv2d(x, w, None, (1, 1), padding, dilation),
        lambda x, w: func.conv2d(x, w, None, 1, padding, dilation),
        torch.randn(IMAGE),
        weight,
    )


@pytest.mark.parametrize("dim", [None, 1, [-1], [0, 2]])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("order", [2, 3])
def test_lengths_of_vectors(order: float, dim: Any, *, keepdim: bool) -> None:
    x = torch.randn(2, 4, 3)
    x[0, 1] = 0.0
    assert_same(
        lambda x: plain.vector_norm(x, order, dim, keepdim),
        lambda x: torch.linalg.vector_norm(x, order, dim, keepdim),
        x,
    )


@pytest.mark.parametrize(
    "given", [(), ((2, 1, 3), (1, 0, 2), (1, 2, 1)), ((1,), (2,), (2, 1, 1), 2)], ids=str
)
@pytest.mark.parametrize("rank", [4, 5])
def test_convolution_of_volumes(given: tuple[Any, ...], rank: int) -> None:
    groups = given[3] if len(given) > 3 else 1
    assert_same(
        lambda x, w, b: plain.conv3d(x, w, b, *given),
        lambda x, w, b: func.conv3d(x, w, b, *given),
        torch.randn(2, 4, 5, 6, 4)[0 if rank == 4 else slice(None)],
        torch.randn(6, 4 // groups, 3, 2, 2),
        torch.randn(6),
    )


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_distances(order: float) -> None:
    left, right = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    right[0, 1] = left[0, 2]
    assert_same(
        lambda x, y: plain.cdist(x, y, order),
        lambda x, y: torch.cdist(x, y, order, "donot_use_mm_for_euclid_dist"),
        left,
        right,
    )


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("num_zeros", [0, 1])
def test_products(length: int, num_zeros: int) -> None:
    x = torch.randn(3, length, 2)
    x[0, :num_zeros] = 0.0
    assert_same(lambda x: plain.prod(x, 1), lambda x: x.prod(1), x)
    assert_same(lambda x: plain.prod(x, -2, True), lambda x: x.prod(-2, keepdim=True), x)
    assert_same(plain.prod_of_all, torch.prod, x)
    assert plain.prod(torch.tensor([2, 3]), 0).item() == 6


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, -1])
def test_sorting(dim: int, *, descending: bool) -> None:
    x = torch.randn(4, 5)
    assert_same(
        lambda x: plain.sort(x, dim, descending)[0],
        lambda x: x.sort(dim, descending).values,
        x,
    )
    assert torch.equal(plain.sort(x, dim, descending)[1], x.argsort(dim, descending))
