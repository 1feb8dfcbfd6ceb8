"""Batches are always full, the same under a seed, and leave no evaluation example out."""

from dataclasses import replace

import pytest
import torch

from pockmobile.errors import UsageError
from pockmobile.sensitivity import Data
from pockmobile.sensitivity.task import in_order, train_batches
from tests.sensitivity.tiny_tasks import BATCH, mlp_task


def test_a_seed_decides_the_batches() -> None:
    task = mlp_task()
    first, again, other = (
        [batch.inputs["features"] for batch in train_batches(task, 9, seed)]
        for seed in (0, 0, 1)
    )
    assert len(first) == 9
    assert all(len(batch) == BATCH for batch in first)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_an_epoch_shows_no_example_twice() -> None:
    task = mlp_task()
    epoch = [batch.inputs["features"] for batch in train_batches(task, 5, 0)]
    assert len(torch.cat(epoch).unique(dim=0)) == 20


def test_the_last_batch_is_filled_with_the_last_example() -> None:
    data = mlp_task(num_eval=6).eval
    (first, num_first), (last, num_last) = in_order(data, BATCH)
    assert (num_first, num_last) == (4, 2)
    assert torch.equal(first.targets[0], data.targets[0][:4])
    assert torch.equal(last.inputs["features"], data.inputs["features"][[4, 5, 5, 5]])


def test_data_that_do_not_fit_are_refused() -> None:
    task = mlp_task()
    rows, labels = task.train.inputs["features"], task.train.targets
    with pytest.raises(UsageError, match="hold the inputs x; the model takes features"):
        replace(task, train=Data({"x": rows}, labels))
    with pytest.raises(UsageError, match=r"features is torch.float32 \[22, 7\], expected"):
        replace(task, train=Data({"features": rows[:, :7]}, labels))
    with pytest.raises(UsageError, match="hold 21, 22 examples"):
        replace(task, eval=Data({"features": rows}, (labels[0][:21],)))
    with pytest.raises(UsageError, match="3 training examples do not fill one batch of 4"):
        replace(task, train=task.train.select(torch.arange(3)))
