"""The gradient of max pooling, against eager PyTorch's."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor

from pockmobile.capture.pooling import max_pool2d_with_indices_backward
from tests.targets.running import check_on_xnnpack

GEOMETRIES = list(itertools.product(((2, 2), (3, 3), (3, 2)), (1, 2, 3, 4), (0, 1), (1, 2)))


def _gradient(x: Tensor, grad: Tensor, *geometry: Any) -> Tensor:
    size, stride, padding, dilation = geometry
    pairs = [[stride] * 2, [padding] * 2, [dilation] * 2]
    _, indices = func.max_pool2d(x, size, *geometry[1:], return_indices=True)
    return max_pool2d_with_indices_backward(grad, x, list(size), *pairs, False, indices)


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (3, 10, 11), (1, 2, 12, 8)])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_first_of_equal_maxima_takes_the_gradient(
    shape: tuple[int, ...], geometry: Any
) -> None:
    torch.manual_seed(0)
    # Few different values, so that most windows have their maximum more than once.
    x = torch.randint(4, shape).float().requires_grad_()
    y = func.max_pool2d(x, *geometry)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, grad)
    found = _gradient(x.detach(), grad, *geometry)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_window_cut_at_the_border_goes_by_indices() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    y, indices = func.max_pool2d(x, 3, 2, ceil_mode=True, return_indices=True)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, grad)
    pairs: Any = ([3, 3], [2, 2], [0, 0], [1, 1])
    found = max_pool2d_with_indices_backward(grad, x.detach(), *pairs, True, indices)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("geometry", [((3, 3), 2, 1, 1), ((2, 2), 2, 0, 1), ((3, 3), 1, 1, 2)])
def test_xnnpack_takes_all_of_it(geometry: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9).relu()
    grad = torch.randn_like(func.max_pool2d(x, *geometry))
    check_on_xnnpack(lambda x, grad: _gradient(x, grad, *geometry), x, grad)
