"""A cube that multiplies something is never computed."""

import torch

from pockmobile.passes import SpreadPowers
from tests.passes.graphs import apply, assert_close, listing, trace

VALUES = {"g": torch.randn(4, 3), "r": torch.rand(4, 1) + 0.5}


def test_a_cube_is_multiplied_factor_by_factor() -> None:
    graph = trace(lambda g, r: g * r**3, VALUES)
    spread = apply(SpreadPowers(), graph)
    assert listing(spread) == [
        "mul_tensor = mul(g, r)",
        "mul_tensor_1 = mul(mul_tensor, r)",
        "mul_tensor_2 = mul(mul_tensor_1, r)",
        "return mul_tensor_2",
    ]
    assert_close(graph, spread, VALUES, tolerance=1e-5)


def test_it_holds_where_the_cube_is_beyond_float16() -> None:
    values = {"g": torch.full((2, 1), 1e-3).half(), "r": torch.full((2, 1), 50.0).half()}
    g, r = values.values()
    assert torch.isinf(g * r**3).all()
    spread = apply(SpreadPowers(), trace(lambda g, r: r**3 * g, values))
    found = spread.module(g, r)[0]
    torch.testing.assert_close(found.float(), torch.full((2, 1), 125.0), rtol=1e-2, atol=0)


def test_other_powers_and_lone_cubes_are_left_alone() -> None:
    for function in (lambda g, r: g * r**2, lambda g, r: r**3, lambda g, r: r**3 * 2.0):
        graph = trace(function, VALUES)
        assert apply(SpreadPowers(), graph) is graph
