"""A task that is cut gives what the whole one gives, and starts at the layer that learns."""

import pytest
import torch
from torch import Tensor, nn

from pockmobile.capture.cut import first_use
from pockmobile.plan import Slice
from pockmobile.sensitivity import Task, cut_task, fine_tune
from pockmobile.sensitivity.prefix import PrefixCache
from tests.sensitivity.tiny_tasks import BATCH, SCHEDULE, cnn_task, mlp_task, space_of, task_of


def num_operators(task: Task) -> int:
    return sum(node.op == "call_function" for node in task.forward.graph.graph.nodes)


@pytest.mark.parametrize(
    "update",
    [
        {"stem_bn.bias": None},
        {"blocks.0.conv2.weight": None, "blocks.0.bn2.bias": None},
        {"blocks.1.conv1.weight": Slice(1, 2, 6)},
        {"blocks.1.conv3.weight": None},
        {"head.weight": None, "head.bias": None},
    ],
)
def test_a_cut_task_gives_the_same(update: dict[str, Slice | None]) -> None:
    task = cnn_task()
    cut = cut_task(task, update)
    whole, found = (fine_tune(side, update, SCHEDULE, 1) for side in (task, cut))
    assert num_operators(cut) < num_operators(task)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert found.metric == whole.metric


def test_cuts_go_on_from_the_one_before() -> None:
    task = cnn_task()
    cache = PrefixCache(task)
    sizes = []
    for layer in space_of(task.forward).layers:
        for option in layer.options:
            cut = cache.task_for(option.update)
            assert cache.task_for(option.update) is cut
            whole, found = (fine_tune(t, option.update, SCHEDULE, 0) for t in (task, cut))
            assert found.loss == pytest.approx(whole.loss, rel=1e-6)
        sizes.append(num_operators(cut))
    assert sizes == sorted(sizes, reverse=True)
    first = cache.task_for(["stem.weight"])
    assert first is task


def test_a_shortcut_around_the_cut_is_stored_too() -> None:
    cut = cut_task(cnn_task(), ["blocks.0.conv2.weight"])
    assert len(cut.train.inputs) == 2
    assert {len(value) for value in cut.train.inputs.values()} == {12}
    assert {len(value) for value in cut.eval.inputs.values()} == {6}
    assert all(len(value) == BATCH for value in cut.forward.inputs.values())


def test_nothing_is_stored_before_the_first_layer() -> None:
    task = mlp_task()
    assert cut_task(task, ["layers.0.weight"]) is task


def test_without_a_trained_layer_the_outputs_are_stored() -> None:
    task = mlp_task()
    cut = cut_task(task, [])
    assert num_operators(cut) == 0
    assert fine_tune(cut, {}, SCHEDULE, 0).loss == pytest.approx(
        fine_tune(task, {}, SCHEDULE, 0).loss, rel=1e-6
    )


def test_too_large_a_cache_cuts_earlier_or_not_at_all() -> None:
    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide, self.head = (
                nn.Linear(8, 4),
                nn.Linear(4, 64),
                nn.Linear(64, 2),
            )

        def forward(self, features: Tensor) -> Tensor:
            return self.head(self.wide(self.narrow(features).relu()))

    task = task_of(Widening(), torch.randn(24, 8), 16)
    widths = [
        [
            value.shape[1]
            for value in cut_task(task, ["head.weight"], limit).train.inputs.values()
        ]
        for limit in (24 * 64 * 4, 24 * 64 * 4 - 1, 24 * 4 * 4 - 1)
    ]
    assert widths == [[64], [4], [8]]


class Mixing(nn.Module):
    """Features whose first dimension is not, or only looks like, the batch."""

    def __init__(self, *, looks_like_batch: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, BATCH), nn.Linear(BATCH, 2)
        self.looks_like_batch = looks_like_batch

    def forward(self, features: Tensor) -> Tensor:
        x = self.first(features).t()
        x = x if self.looks_like_batch else x.reshape(-1).unsqueeze(0)
        x = x * self.head.bias.sum()
        return self.head(x.reshape(BATCH, -1).t())


@pytest.mark.parametrize("looks_like_batch", [False, True])
def test_what_is_not_one_for_each_example_is_not_stored(looks_like_batch: bool) -> None:
    task = task_of(Mixing(looks_like_batch=looks_like_batch), torch.randn(18, 8), 12)
    update: dict[str, Slice | None] = {"head.bias": None}
    whole, found = (fine_tune(t, update, SCHEDULE, 0) for t in (task, cut_task(task, update)))
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_first_use_of_tied_parameters_counts() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.two.weight = self.one.weight

        def forward(self, features: Tensor) -> Tensor:
            return self.head(self.two(self.one(features).relu()))

    forward = task_of(Tied(), torch.randn(8, 8), 4).forward
    nodes = list(forward.graph.graph.nodes)
    linear = torch.ops.aten.linear.default
    assert nodes[first_use(forward, ["one.weight"])].target is linear
    assert first_use(forward, ["one.weight"]) < first_use(forward, ["two.bias"])
    assert first_use(forward, []) == len(nodes)


def test_in_place_operators_leave_the_stored_values_alone() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, features: Tensor) -> Tensor:
            x = self.one(features)
            y = self.two(x * 2.0)
            x += y
            return self.head(x)

    task = task_of(InPlace(), torch.randn(18, 8), 12)
    update: dict[str, Slice | None] = {"two.weight": None}
    cut = cut_task(task, update)
    whole, found, again = (fine_tune(side, update, SCHEDULE, 0) for side in (task, cut, cut))
    assert num_operators(cut) < num_operators(task)
    assert found == again
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
