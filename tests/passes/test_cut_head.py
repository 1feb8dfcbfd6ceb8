"""A prediction's frozen head is cut as that of the training step is."""

import torch
from torch import Tensor

from pockmobile.passes import Canonicalize, CutHead, run_passes
from tests.passes.graphs import apply, assert_close, operators, trace

HEAD = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
INPUTS = {"h": torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))}


def _logits(h: Tensor, head: Tensor) -> Tensor:
    return (h.reshape(6, 8) @ head.t()).reshape(2, 3, 50)


def test_logits_are_computed_by_runs() -> None:
    graph = trace(_logits, INPUTS, constants={"head": HEAD})
    graph = run_passes(graph, [Canonicalize()])[0]
    changed = apply(CutHead(50, 20), graph)
    assert operators(changed).count("mm") == 3
    assert_close(graph, changed, INPUTS, tolerance=1e-5)
    assert apply(CutHead(50, 20), changed) is changed


def test_what_learns_or_has_another_size_stays() -> None:
    graph = trace(_logits, INPUTS, constants={"head": HEAD})
    graph = run_passes(graph, [Canonicalize()])[0]
    assert apply(CutHead(51, 20), graph) is graph

    def trained(head: Tensor, h: Tensor) -> Tensor:
        return _logits(h, head)

    graph = trace(trained, INPUTS, parameters={"head": HEAD})
    graph = run_passes(graph, [Canonicalize()])[0]
    assert apply(CutHead(50, 20), graph) is graph
