"""Every operator that QNN takes, on the Hexagon simulator against eager PyTorch."""

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from tests.targets.qnn import check_on_simulator, needs_libraries

pytestmark = needs_libraries
aten = torch.ops.aten

ELEMENTWISE: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "exp": torch.exp,
    "floor": torch.floor,
    "gelu": nn.functional.gelu,
    "gelu by tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "erf": torch.erf,
    "sign": torch.sign,
    "hardtanh": nn.functional.hardtanh,
    "log": lambda x: (x.abs() + 1.0).log(),
    "neg": torch.neg,
    "reciprocal": lambda x: (x.abs() + 1.0).reciprocal(),
    "relu": torch.relu,
    "rsqrt": lambda x: (x.abs() + 1.0).rsqrt(),
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "sqrt": lambda x: (x.abs() + 1.0).sqrt(),
    "tanh": torch.tanh,
    "power": lambda x: x**3,
    "above": lambda x: x.clamp(min=0.1),
    "below": lambda x: x.clamp(max=0.1),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "largest": lambda x: x.amax(-1, keepdim=True),
    "relu's gradient": lambda x: aten.threshold_backward(x, x, 0.0),
    "hardtanh's gradient": lambda x: aten.hardtanh_backward(x, x, -0.5, 0.5),
}


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 8)


def test_elementwise_operators(x: Tensor) -> None:
    check_on_simulator(lambda x: [function(x) for function in ELEMENTWISE.values()], x)


def test_elementwise_operators_in_int16(x: Tensor) -> None:
    """Nearer to eager PyTorch than float16 is; but its logarithm is 0, and so refused."""
    functions = [function for name, function in ELEMENTWISE.items() if name != "log"]
    check_on_simulator(
        lambda x: [function(x) for function in functions],
        x,
        tolerance=5e-3,
        precision="int16",
    )


def test_what_qnn_gets_wrong_in_int16(x: Tensor) -> None:
    """Unless rows keep their table's encoding, and a bias leaves room for the products."""
    tokens, weight = torch.tensor([[2, 0], [2, 1]]), torch.rand(6, 4, 1, 1) * 0.01

    def function(x: Tensor, image: Tensor, tokens: Tensor, table: Tensor, *rest: Tensor) -> Any:
        rows = nn.functional.embedding(tokens, table)
        return [x * 2.0, rows + 0.0, nn.functional.conv2d(image, *rest)]

    table = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)
    table[0] *= 9.0
    constants = {"weight": weight, "bias": torch.linspace(-3.0, 3.0, 6)}
    image = torch.rand(2, 4, 8, 8) * 0.1
    check_on_simulator(
        function,
        x,
        image,
        tokens,
        table,
        constants=constants,
        tolerance=5e-3,
        precision="int16",
    )


def test_two_operands_and_broadcasting(x: Tensor) -> None:
    row = torch.rand(8) + 0.5

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        return [x + y, x - y, x * y, x / y, torch.maximum(x, y), torch.minimum(x, y), 1.0 - x]

    check_on_simulator(function, x, row)


def test_sums_and_means() -> None:
    x = torch.randn(2, 4, 6, 5)

    def function(x: Tensor) -> list[Tensor]:
        sums = [x.sum([0, 2, 3]), x.sum(1), x.mean([2, 3]), x.mean(-1, keepdim=True)]
        return [*sums, aten.avg_pool2d(x, [2, 2], [2, 2])]

    check_on_simulator(function, x)


def test_products() -> None:
    def function(a: Tensor, b: Tensor, bias: Tensor) -> list[Tensor]:
        batches = torch.bmm(a.reshape(2, 3, 4), b.reshape(2, 4, 6))
        return [batches, a @ b[:, :3], torch.addmm(bias, a, b), a.t() @ a]

    check_on_simulator(function, torch.randn(6, 4), torch.randn(4, 12), torch.randn(12))


def test_what_moves_data() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [
            x.permute(0, 2, 3, 1),
            x.reshape(2, 3, 20),
            x[:, 1:3],
            x[:, :, ::2],
            torch.cat([x, x * 2.0], 1),
            x[:, :1].expand(2, 3, 4, 5),
            nn.functional.pad(x, (1, 1, 2, 2)),
        ]

    check_on_simulator(function, torch.randn(2, 3, 4, 5))


def test_whole_numbers(x: Tensor) -> None:
    """They come in 32 bits: labels, tokens, and the place of a maximum."""
    labels, tokens = torch.tensor([[1], [7], [0]]), torch.tensor([[2, 0], [2, 1]])

    def function(x: Tensor, labels: Tensor, tokens: Tensor, rows: Tensor) -> list[Tensor]:
        row = labels.reshape(3)
        hits = (x.argmax(-1) == row) & (row != 0)
        return [
            x.gather(-1, labels),
            torch.zeros_like(x).scatter(-1, labels, x[:, :1]),
            x.scatter(-1, labels, x[:, 2:3]),
            nn.functional.embedding(tokens, x),
            aten.index_put(x, [tokens], rows, True),
            hits.float(),
            torch.where(row > 0, x[:, 0], x[:, 1]),
        ]

    lowered = check_on_simulator(function, x, labels, tokens, torch.randn(2, 2, 8))
    assert "aten.gather.default" not in lowered.delegates[0].operators


def test_numbers_without_dimensions(x: Tensor) -> None:
    def function(x: Tensor, factor: Tensor) -> list[Tensor]:
        total = (x * factor).sum()
        scale = 1.0 / total.abs().clamp(min=1.0)
        return [total, x * scale, -(x * x).mean() * scale]

    check_on_simulator(function, x, torch.tensor(0.5))


def test_group_norm() -> None:
    check_on_simulator(
        lambda x, weight, bias: nn.functional.group_norm(x, 2, weight, bias),
        torch.randn(2, 4, 3, 5),
        constants={"weight": torch.rand(4) + 0.5, "bias": torch.randn(4)},
    )


@pytest.mark.parametrize("widths", [(0, 1, 0, 1), (2, 0), (0, 0, 0, 0, 1, 0)])
def test_pads_that_qnn_gets_wrong(widths: tuple[int, ...]) -> None:
    """Its own pad returns garbage for these, and says nothing."""
    lowered = check_on_simulator(
        lambda x: nn.functional.pad(x, widths, value=2.0), torch.randn(2, 3, 4, 5)
    )
    assert "aten.constant_pad_nd.default" not in lowered.delegates[0].operators


def test_layer_norm_is_not_taken_for_an_rms_norm(x: Tensor) -> None:
    """ExecuTorch recognises the variance of x - mean as an RMS norm of x."""
    weight, bias = torch.rand(8) + 0.5, torch.randn(8)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.layer_norm(x + 5.0, (8,), weight, bias)

    check_on_simulator(function, x, constants={"weight": weight, "bias": bias})


CONVOLUTIONS: Final[dict[str, dict[str, Any]]] = {
    "plain": {"shape": (6, 4, 3, 3), "padding": [1, 1]},
    "strided": {"shape": (6, 4, 3, 3), "stride": [2, 2], "padding": [1, 1]},
    "pointwise": {"shape": (6, 4, 1, 1)},
    "depthwise": {"shape": (4, 1, 3, 3), "padding": [1, 1], "groups": 4},
    "strided depthwise": {
        "shape": (4, 1, 3, 3), "stride": [2, 2], "padding": [1, 1], "groups": 4
    },
    "grouped": {"shape": (6, 2, 3, 3), "groups": 2},
    "dilated": {"shape": (6, 4, 3, 3), "dilation": [2, 2], "padding": [2, 2]},
}  # fmt: skip


def _convolve(x: Tensor, weight: Tensor, case: dict[str, Any]) -> Tensor:
    two = [1, 1]
    result: Tensor = aten.convolution(
        x, weight, None, case.get("stride", two), case.get("padding", [0, 0]),
        case.get("dilation", two), False, [0, 0], case.get("groups", 1),
    )  # fmt: skip
    return result


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, case: dict[str, Any], mask: list[bool]
) -> list[Tensor]:
    two = [1, 1]
    found = aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], case.get("stride", two),
        case.get("padding", [0, 0]), case.get("dilation", two), False, [0, 0],
        case.get("groups", 1), mask,
    )  # fmt: skip
    return [value for value in found if value is not None]


def _tensors() -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Returns an input, and for each case its weight and its gradient."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    weights = [torch.randn(case["shape"]) * 0.2 for case in CONVOLUTIONS.values()]
    cases = zip(weights, CONVOLUTIONS.values(), strict=True)
    return x, weights, [torch.randn_like(_convolve(x, *case)) * 0.2 for case in cases]


def test_frozen_convolutions_and_the_gradients_through_them() -> None:
    """Both directions read one weight, which QNN would lay out for one of them alone."""
    x, weights, grads = _tensors()

    def function(x: Tensor, *tensors: Tensor) -> list[Tensor]:
        found = []
        mask = [True, False, False]
        for index, case in enumerate(CONVOLUTIONS.values()):
            grad, weight = tensors[index], tensors[len(grads) + index]
            found += [_convolve(x, weight, case), *_gradients(grad, x, weight, case, mask)]
        return found

    constants = {f"weight{index}": weight for index, weight in enumerate(weights)}
    check_on_simulator(function, x, *grads, constants=constants)


def test_trained_convolutions() -> None:
    x, weights, grads = _tensors()

    def function(x: Tensor, *tensors: Tensor) -> list[Tensor]:
        found = []
        mask = [True, True, True]
        for index, case in enumerate(CONVOLUTIONS.values()):
            grad, weight = tensors[index], tensors[len(grads) + index]
            found += [_convolve(x, weight, case), *_gradients(grad, x, weight, case, mask)]
        return found

    check_on_simulator(function, x, *grads, *weights, tolerance=5e-2)


@pytest.mark.parametrize("precision", ["fp16", "int16"])
def test_pooling_with_its_gradient(precision: str) -> None:
    from pockmobile.capture.pooling import max_pool2d_with_indices_backward

    def function(x: Tensor, grad: Tensor) -> list[Tensor]:
        window = [[3, 3], [2, 2], [1, 1], [1, 1], False]
        largest, indices = aten.max_pool2d_with_indices(x, *window)
        # Not of the busy x twice: the comparison must see the same numbers.
        return [largest, max_pool2d_with_indices_backward(grad, x, *window, indices)]

    torch.manual_seed(0)
    # Numbers that float16 holds, so that it finds the same maxima.
    x = torch.randperm(2 * 3 * 64).reshape(2, 3, 8, 8).float()
    check_on_simulator(function, x, torch.randn(2, 3, 4, 4), precision=precision)
