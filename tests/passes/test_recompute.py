"""What is kept through the peak is made again after it, for the least work."""

import torch
from torch import Tensor

from pockmobile.graph import JointGraph
from pockmobile.graph.liveness import Liveness
from pockmobile.optim import SGD
from pockmobile.passes import (
    AppendOptimizer,
    ApplyPlan,
    Canonicalize,
    Prune,
    Recompute,
    RemoveNoops,
)
from pockmobile.plan import UpdatePlan
from tests.passes.graphs import (
    MODELS,
    apply,
    assert_same,
    aten,
    batch,
    canonical,
    operators,
    trace,
)

X = {"x": torch.randn(8, 8)}
SIZE = 8 * 8 * 4
VIEWS = frozenset({aten.view.default})


def peak(graph: JointGraph) -> int:
    return Liveness.of(graph, VIEWS).peak


def kept(x: Tensor) -> Tensor:
    """Keeps `a` while something four times as large is made."""
    a = x.exp()
    first = a.sum()
    middle = x.repeat(4, 1).sum()
    return first + middle + a.neg().sum()


def test_a_value_is_made_again_after_the_peak() -> None:
    graph = trace(kept, X)
    assert operators(graph) == ["exp", "sum", "repeat", "sum", "add", "neg", "sum", "add"]
    changed = apply(Recompute(4 * SIZE + 64, VIEWS), graph)
    again = ["exp", "sum", "repeat", "sum", "add", "exp", "neg", "sum", "add"]
    assert operators(changed) == again
    assert peak(changed) == peak(graph) - SIZE
    assert_same(graph, changed, X)


def test_below_the_limit_nothing_is_to_do() -> None:
    graph = trace(kept, X)
    assert apply(Recompute(peak(graph), VIEWS), graph) is graph


def test_where_nothing_helps_the_graph_stays() -> None:
    graph = trace(lambda x: x.exp().sin().sum(), X)
    assert apply(Recompute(0, VIEWS), graph) is graph


def test_a_view_is_made_again_with_its_source() -> None:
    def viewed(x: Tensor) -> Tensor:
        a = x.exp().view(4, 16)
        return a.sum() + x.repeat(4, 1).sum() + a.neg().sum()

    graph = trace(viewed, X)
    changed = apply(Recompute(4 * SIZE + 64, VIEWS), graph)
    assert operators(changed).count("exp") == operators(changed).count("view") == 2
    assert_same(graph, changed, X)


def test_what_needs_least_work_for_its_bytes_goes_first() -> None:
    def two(x: Tensor) -> Tensor:
        product, a = x @ x, x.exp()
        first = product.sum() + a.sum()
        return first + x.repeat(4, 1).sum() + product.neg().sum() + a.neg().sum()

    graph = trace(two, X)
    changed = apply(Recompute(peak(graph) - SIZE, VIEWS), graph)
    assert operators(changed).count("exp") == 2
    assert operators(changed).count("mm") == 1
    least = apply(Recompute(0, VIEWS), graph)
    assert operators(least).count("mm") == 2
    assert_same(graph, least, X)


def test_random_numbers_are_drawn_once() -> None:
    def noisy(x: Tensor) -> Tensor:
        a = torch.rand_like(x)
        return a.sum() + x.repeat(4, 1).sum() + a.neg().sum()

    changed = apply(Recompute(0, VIEWS), trace(noisy, X))
    assert operators(changed).count("rand_like") == 1


def test_a_small_source_is_kept_for_a_large_value() -> None:
    def widened(x: Tensor) -> Tensor:
        small = x[:1].exp()
        large = small.repeat(16, 1)
        return large.sum() + x.repeat(4, 1).sum() + large.neg().sum()

    graph = trace(widened, X)
    changed = apply(Recompute(0, VIEWS), graph)
    assert operators(changed).count("exp") <= 2
    assert peak(changed) < peak(graph) - SIZE
    assert_same(graph, changed, X)


def test_training_steps_need_less_memory_and_compute_the_same() -> None:
    for name in MODELS:
        graph = canonical(name)
        every = {port.parameter: None for port in graph.outputs if port.parameter}
        for item in (ApplyPlan(UpdatePlan(every)), Prune(), AppendOptimizer(SGD())):
            graph = apply(item, graph)
        graph = apply(RemoveNoops(), apply(Canonicalize(), graph))
        changed = apply(Recompute(peak(graph) // 2, VIEWS), graph)
        assert peak(changed) < 0.9 * peak(graph)
        assert_same(graph, changed, {**batch(name), "lr": torch.tensor(0.1)})
