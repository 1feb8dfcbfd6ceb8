"""A task that was packed is the same task."""

from pathlib import Path

import pytest
import torch

from pockmobile import models
from pockmobile.capture import export_forward
from pockmobile.errors import UsageError
from pockmobile.loss import NextToken, resolve_loss
from pockmobile.sensitivity import Data, Task, cut_task, fine_tune
from pockmobile.sensitivity.packing import pack, unpack
from tests.sensitivity.tiny_tasks import SCHEDULE, cnn_task, mlp_task


def language_task() -> Task:
    torch.manual_seed(0)
    tokens = torch.randint(512, (6, 8))
    forward = export_forward(models.tiny_llama(), (tokens[:2],))
    data = Data(dict.fromkeys(forward.inputs, tokens), (tokens,))
    return Task(forward, NextToken(), data, data)


@pytest.mark.parametrize("kind", ["whole", "cut", "language"])
def test_a_packed_task_gives_the_same(kind: str, tmp_path: Path) -> None:
    task = language_task() if kind == "language" else cnn_task()
    task = cut_task(task, ["head.bias"]) if kind == "cut" else task
    pack(task, tmp_path / "task")
    found = unpack(tmp_path / "task")
    names = [[node.name for node in side.forward.graph.graph.nodes] for side in (task, found)]
    assert names[0] == names[1]
    update = dict.fromkeys(list(task.forward.trainable)[:1])
    assert fine_tune(found, update, SCHEDULE, 0) == fine_tune(task, update, SCHEDULE, 0)


def test_a_loss_that_no_other_process_finds_is_refused(tmp_path: Path) -> None:
    task = mlp_task(loss=resolve_loss(lambda output, labels: output.sum()))
    with pytest.raises(UsageError, match="define it at the top of a module, or take one"):
        pack(task, tmp_path / "task")
