"""Fine-tuning does what eager PyTorch does, moves nothing that is frozen, and is measured."""

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor

from pockmobile import models
from pockmobile.errors import UsageError
from pockmobile.loss import IGNORED_LABEL, MeanSquaredError, NextToken, resolve_loss
from pockmobile.optim import SGD, AdamW, Lion
from pockmobile.plan import Slice
from pockmobile.sensitivity import Data, Schedule, Task, fine_tune
from pockmobile.sensitivity.partial import PartlyTrained
from pockmobile.sensitivity.task import train_batches
from pockmobile.sensitivity.training import metric_name
from tests.sensitivity.tiny_tasks import SCHEDULE, cnn_task, mlp_task

UPDATE = {"head.weight": None, "head.bias": None, "layers.1.weight": Slice(1, 8, 16)}


def eager_output(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    model = models.mlp(num_inputs=8, num_classes=2)
    output: Tensor = torch.func.functional_call(model, dict(parameters), (inputs,))
    return output


def test_training_is_that_of_eager_pytorch() -> None:
    task, schedule = mlp_task(), Schedule(6, 0.05, AdamW(weight_decay=0.1), clip_norm=0.5)
    start = task.forward.parameters
    leaves = {
        name: start[name].clone().requires_grad_() for name in ("head.weight", "head.bias")
    }
    columns = start["layers.1.weight"][:, 8:16].clone().requires_grad_()
    optimizer = torch.optim.AdamW([*leaves.values(), columns], weight_decay=0.1)

    def joined() -> dict[str, Tensor]:
        weight = start["layers.1.weight"].clone()
        weight[:, 8:16] = columns
        return {**start, **leaves, "layers.1.weight": weight}

    for step, batch in enumerate(train_batches(task, 6, 3)):
        output = eager_output(joined(), batch.inputs["features"])
        optimizer.zero_grad()
        func.cross_entropy(output, batch.targets[0]).backward()
        torch.nn.utils.clip_grad_norm_([*leaves.values(), columns], 0.5)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 6)
        optimizer.step()
    output = eager_output(joined(), task.eval.inputs["features"]).detach()
    labels = task.eval.targets[0]
    outcome = fine_tune(task, UPDATE, schedule, 3)
    assert outcome.metric == pytest.approx(float((output.argmax(1) == labels).float().mean()))
    assert outcome.loss == pytest.approx(float(func.cross_entropy(output, labels)), rel=1e-5)


def test_a_slice_is_joined_with_what_is_frozen_bit_for_bit() -> None:
    task = mlp_task()
    model = PartlyTrained(task.forward, {"layers.1.weight": Slice(1, 8, 16)})
    start = task.forward.parameters["layers.1.weight"].clone()
    model.set_leaf("layers.1.weight", torch.full((32, 8), 7.0))
    model.output(task.forward.inputs)
    whole = model._tensors["layers.1.weight"]
    assert torch.equal(whole[:, 8:16], torch.full((32, 8), 7.0))
    assert torch.equal(whole[:, :8], start[:, :8])
    assert torch.equal(whole[:, 16:], start[:, 16:])


@pytest.mark.parametrize("optimizer", [SGD(), AdamW(), Lion(weight_decay=0.1)])
def test_the_model_stays_at_its_start(optimizer: SGD | AdamW | Lion) -> None:
    task = cnn_task()
    tensors = {**task.forward.parameters, **task.forward.buffers}
    before = {name: value.clone() for name, value in tensors.items()}
    fine_tune(task, dict.fromkeys(task.forward.trainable), Schedule(2, 0.1, optimizer), 0)
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())


def test_training_helps_and_a_seed_repeats_it() -> None:
    task = mlp_task(num_train=80, num_eval=30)
    update, schedule = dict.fromkeys(task.forward.trainable), Schedule(60, 0.3, SGD())
    start, trained = fine_tune(task, {}, schedule, 0), fine_tune(task, update, schedule, 0)
    assert trained.metric > start.metric
    assert trained.loss < start.loss
    assert fine_tune(task, update, schedule, 0) == trained
    assert fine_tune(task, update, schedule, 1) != trained


def test_padding_and_ignored_labels_count_for_nothing() -> None:
    task = mlp_task(num_eval=9)
    task.eval.targets[0][2] = IGNORED_LABEL
    counted = [row for row in range(9) if row != 2]
    output = eager_output(task.forward.parameters, task.eval.inputs["features"][counted])
    labels = task.eval.targets[0][counted]
    outcome = fine_tune(task, {}, SCHEDULE, 0)
    assert outcome.metric == pytest.approx(float((output.argmax(1) == labels).float().mean()))
    assert outcome.loss == pytest.approx(float(func.cross_entropy(output, labels)), rel=1e-5)


def custom_loss(output: Tensor, labels: Tensor) -> Tensor:
    return func.cross_entropy(output, labels)


def test_a_loss_without_an_ignored_label_drops_the_rest() -> None:
    task = mlp_task(num_eval=9, loss=resolve_loss(custom_loss))
    inputs, labels = task.eval.inputs["features"][:8], task.eval.targets[0][:8]
    expected = float(custom_loss(eager_output(task.forward.parameters, inputs), labels))
    outcome = fine_tune(task, {}, SCHEDULE, 0)
    assert outcome.loss == pytest.approx(expected, rel=1e-5)
    assert outcome.metric == -outcome.loss
    few = mlp_task(num_eval=3, loss=resolve_loss(custom_loss))
    with pytest.raises(UsageError, match=r"3 evaluation examples .* do not fill a batch of 4"):
        fine_tune(few, {}, SCHEDULE, 0)


def test_values_are_padded_with_nan() -> None:
    task = mlp_task(num_eval=6)
    train, held_out = (
        Data(data.inputs, (func.one_hot(data.targets[0]).float(),))
        for data in (task.train, task.eval)
    )
    task = Task(task.forward, MeanSquaredError(), train, held_out)
    output = eager_output(task.forward.parameters, held_out.inputs["features"])
    expected = float(func.mse_loss(output, held_out.targets[0]))
    assert fine_tune(task, {}, SCHEDULE, 0).loss == pytest.approx(expected, rel=1e-5)


def test_a_run_that_diverges_is_rolled_back() -> None:
    task = mlp_task()
    wild = Schedule(6, 1e30, SGD())
    outcome = fine_tune(task, dict.fromkeys(task.forward.trainable), wild, 0)
    assert outcome.metric == fine_tune(task, {}, wild, 0).metric
    assert math.isinf(outcome.loss)


def test_language_models_are_measured_by_their_loss() -> None:
    assert metric_name(NextToken()) == "loss"
    assert metric_name(resolve_loss("cross_entropy")) == "accuracy"
    assert metric_name(resolve_loss("mse")) == "loss"


def test_a_schedule_falls_to_zero_and_refuses_what_is_not_above() -> None:
    rates = [SCHEDULE.rate(step) for step in range(7)]
    assert rates[0] == SCHEDULE.lr
    assert rates[6] == 0.0
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(UsageError, match="num_steps must be above 0, found 0"):
        Schedule(0, 0.1, SGD())
