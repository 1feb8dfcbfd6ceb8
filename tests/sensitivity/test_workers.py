"""A worker that dies ends the run with one clear error."""

import os

import pytest
from torch import Tensor

from pockmobile.errors import PockmobileError
from pockmobile.loss import resolve_loss
from pockmobile.sensitivity import measure_plans
from tests.sensitivity.tiny_tasks import SCHEDULE, all_plans, mlp_task


def deadly_loss(output: Tensor, labels: Tensor) -> Tensor:
    os._exit(1)


def failing_loss(output: Tensor, labels: Tensor) -> Tensor:
    return output


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (deadly_loss, "a worker process ended: .* start again, what is measured is kept"),
        (failing_loss, "must return one float32 number"),
    ],
)
def test_errors_of_workers_reach_the_caller(loss: object, message: str) -> None:
    task = mlp_task(loss=resolve_loss(loss))  # type: ignore[arg-type]
    with pytest.raises(PockmobileError, match=message):
        measure_plans(task, all_plans(task), SCHEDULE, num_processes=2)
