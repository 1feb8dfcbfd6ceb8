"""The command export on real files with the real compiler, and a session on what it writes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from pockmobile import Session
from tests.export_models import (
    CLASSIFIER,
    ENCODER,
    NUM_CLASSES,
    NUM_TOKENS,
    Classifier,
    Encoder,
    Scorer,
    Tokens,
    refused,
    run_export,
    save_state,
    weighted_loss,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def features(num_rows: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(num_rows, 6), torch.randint(NUM_CLASSES, (num_rows,))


def check_sgd(session: Session, model: nn.Module, inputs: Any, targets: Any, loss: Any) -> None:
    """Asserts that a step of plain SGD and a prediction are those of eager PyTorch."""
    loss.backward()
    model.eval()
    assert session.step(inputs, targets, lr=0.5) == pytest.approx(loss.item(), rel=1e-5)
    for name, value in model.named_parameters():
        if name in session.state:
            assert value.grad is not None
            expected = value.detach() - 0.5 * value.grad
            torch.testing.assert_close(session.state[name], expected, atol=1e-5, rtol=1e-4)


# Model files


@pytest.mark.parametrize("target", ["xnnpack", "portable"])
def test_an_archive_of_static_shapes(tmp_path: Path, capsys: Capture, target: str) -> None:
    model, (inputs, labels) = Classifier(), features()
    path = tmp_path / "model.pt"  # not .pt2: the content says what it is
    torch.export.save(torch.export.export(model, (inputs,)), path)
    session = run_export(capsys, path, "--target", target)
    assert (tmp_path / "model.pte").exists()
    assert session.manifest.target == target
    assert session.manifest.methods["predict"].inputs[-1].shape == (4, 6)
    outputs = session.predict(inputs)
    assert isinstance(outputs, Tensor)
    torch.testing.assert_close(outputs, model(inputs))
    result = session.evaluate(inputs, labels)
    assert result.metrics["num_correct"] == (model(inputs).argmax(1) == labels).sum()
    check_sgd(session, model, inputs, labels, cross_entropy(model(inputs), labels))


def test_an_archive_of_any_batch(tmp_path: Path, capsys: Capture) -> None:
    model, path = Classifier(), tmp_path / "model.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (features()[0],), dynamic_shapes=({0: batch},))
    torch.export.save(exported, path)
    session = run_export(
        capsys, path, "-o", tmp_path / "net.pte", "--batch-size", 6, "--predict-batch-size", 2
    )
    methods = session.manifest.methods
    assert [methods[name].inputs_of("input")[0].shape for name in methods] == [
        (6, 6),
        (6, 6),
        (2, 6),
    ]
    inputs, labels = features(6)
    check_sgd(session, model, inputs, labels, cross_entropy(model(inputs), labels))


def test_a_pickled_module_runs_code_and_is_asked_about(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "model.pt"
    torch.save(Classifier(), path)
    assert refused(capsys, path) == (
        f"error: {path} holds pickled Python objects, and loading it runs code from the file: "
        f"if you trust it add --trust-pickle, else save the model with torch.export.save\n"
    )
    session = run_export(
        capsys, path, "--trust-pickle", "--input-shape", 6, "--target", "portable"
    )
    assert session.manifest.model.name == "Classifier"
    assert session.manifest.methods["train_step"].inputs_of("input")[0].shape == (8, 6)
    assert session.manifest.methods["predict"].inputs_of("input")[0].shape == (1, 6)


# Inputs


def tokens(num_rows: int = 4) -> dict[str, Tensor]:
    mask = torch.ones(num_rows, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    return {
        "input_ids": torch.randint(NUM_TOKENS, (num_rows, 5)),
        "attention_mask": mask,
    }


def check_encoder(session: Session, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    inputs = session.manifest.methods["train_step"].inputs_of("input")
    assert [(tensor.name, tensor.high) for tensor in inputs] == [
        ("input_ids", NUM_TOKENS - 1),
        ("attention_mask", None),
    ]
    logits, hidden = session.predict(batch)
    expected = model.eval()(**batch)
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden, expected["hidden"], atol=1e-5, rtol=1e-4)
    labels = torch.tensor([0, 2, 1, -100])
    loss = cross_entropy(model(**batch)["logits"], labels)
    check_sgd(session, model, batch, labels, loss)


def test_ids_and_mask_of_an_archive(tmp_path: Path, capsys: Capture) -> None:
    model, path, batch = Encoder().eval(), tmp_path / "bert.pt2", tokens()
    torch.export.save(torch.export.export(model, (), batch), path)
    check_encoder(run_export(capsys, path, "--plan", "head"), model, batch)


def test_ids_and_mask_by_name_from_a_file(tmp_path: Path, capsys: Capture) -> None:
    model, batch, examples = Encoder(), tokens(), tmp_path / "examples.pt"
    path = save_state(tmp_path / "bert.safetensors", model)
    torch.save({**batch, "labels": torch.zeros(4, dtype=torch.int64)}, examples)
    session = run_export(
        capsys, path, "--model", ENCODER, "--example-inputs", examples, "--plan", "bias"
    )
    check_encoder(session, model, batch)


def test_ids_and_mask_by_shape(tmp_path: Path, capsys: Capture) -> None:
    path = save_state(tmp_path / "bert.pt", Encoder())
    shapes = ("--input-shape", "5:int64", "--input-shape", "attention_mask=5:int64")
    options = ("--batch-size", 2, "--plan", "head", "--target", "portable")
    session = run_export(capsys, path, "--model", ENCODER, *shapes, *options)
    inputs = session.manifest.methods["train_step"].inputs_of("input")
    assert [(tensor.name, tensor.shape) for tensor in inputs] == [
        ("input_ids", (2, 5)),
        ("attention_mask", (2, 5)),
    ]


# Losses, with example targets of every kind of file


def test_mean_squared_error(tmp_path: Path, capsys: Capture) -> None:
    model, examples = Scorer(), tmp_path / "examples.npz"
    path = save_state(tmp_path / "scorer.pt", model)
    inputs, targets = torch.randn(4, 6), torch.randn(4, 2)
    np.savez(examples, inputs.numpy(), target=targets.numpy())
    session = run_export(
        capsys, path, "--model", "tests.export_models:Scorer", "--example-inputs", examples,
        "--loss", "mse",
    )  # fmt: skip
    loss = mse_loss(model(inputs), targets)
    assert session.evaluate(inputs, targets).metrics == {"num_counted": 8}
    check_sgd(session, model, inputs, targets, loss)


def test_binary_cross_entropy(tmp_path: Path, capsys: Capture) -> None:
    model, examples = Scorer(), tmp_path / "examples.safetensors"
    path = save_state(tmp_path / "scorer.pt", model)
    inputs, targets = torch.randn(4, 6), torch.randint(2, (4, 2)).float()
    safetensors.torch.save_file({"features": inputs, "target": targets}, examples)
    session = run_export(
        capsys, path, "--model", "tests.export_models:Scorer", "--example-inputs", examples,
        "--loss", "bce", "--target", "portable",
    )  # fmt: skip
    loss = binary_cross_entropy_with_logits(model(inputs), targets)
    check_sgd(session, model, inputs, targets, loss)


def test_next_token(tmp_path: Path, capsys: Capture) -> None:
    model = Tokens()
    path = save_state(tmp_path / "tokens.safetensors", model)
    session = run_export(
        capsys, path, "--model", "tests.export_models:Tokens", "--loss", "next_token",
        "--input-shape", "7:int64", "--batch-size", 3,
    )  # fmt: skip
    assert list(session.state) == ["embed.weight"]  # tied: one parameter
    ids = torch.randint(NUM_TOKENS, (3, 7))
    loss = cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    check_sgd(session, model, ids, ids, loss)


def test_a_loss_of_ones_own_with_two_targets(tmp_path: Path, capsys: Capture) -> None:
    model, examples = Scorer(), tmp_path / "examples.pt"
    path = save_state(tmp_path / "scorer.pt", model)
    inputs, targets, weights = torch.randn(4, 6), torch.randn(4, 2), torch.rand(4, 2)
    arguments = (path, "--model", "tests.export_models:Scorer", "--target", "portable")
    arguments += ("--loss", "tests.export_models:weighted_loss", "--example-inputs", examples)
    torch.save({"features": inputs}, examples)
    assert "is your own, so example targets must be given" in refused(capsys, *arguments)
    torch.save({"features": inputs, "target": targets, "label": weights}, examples)
    session = run_export(capsys, *arguments)
    assert session.manifest.loss == "tests.export_models:weighted_loss"
    loss = weighted_loss(model(inputs), targets, weights)
    check_sgd(session, model, inputs, (targets, weights), loss)


# Plans and optimizers


@pytest.mark.parametrize(
    ("plan", "trained"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("last:1", ["blocks.1.0.weight", "blocks.1.0.bias", "head.weight", "head.bias"]),
        ("bias", ["blocks.0.0.bias", "blocks.1.0.bias", "head.weight", "head.bias"]),
        (
            "sparse:2:1",
            [
                "blocks.0.0.bias",
                "blocks.1.0.weight",
                "blocks.1.0.bias",
                "head.weight",
                "head.bias",
            ],
        ),
    ],
)
def test_presets(tmp_path: Path, capsys: Capture, plan: str, trained: list[str]) -> None:
    model, (inputs, labels) = Classifier(), features()
    path = save_state(tmp_path / "model.pt", model)
    arguments = ("--model", CLASSIFIER, "--input-shape", 6, "--batch-size", 4)
    session = run_export(capsys, path, *arguments, "--plan", plan, "--target", "portable")
    assert session.manifest.plan.preset == plan
    assert list(session.state) == trained
    check_sgd(session, model, inputs, labels, cross_entropy(model(inputs), labels))


def test_a_plan_file_with_a_slice(tmp_path: Path, capsys: Capture) -> None:
    model, (inputs, labels), plan = Classifier(), features(), tmp_path / "plan.json"
    path = save_state(tmp_path / "model.pt", model)
    update = {"head.weight": {"dim": 1, "start": 2, "stop": 5}, "head.bias": None}
    plan.write_text(json.dumps({"format": 1, "preset": None, "update": update}))
    session = run_export(
        capsys,
        path,
        "--model",
        CLASSIFIER,
        "--input-shape",
        6,
        "--batch-size",
        4,
        "--plan",
        plan,
    )
    cross_entropy(model(inputs), labels).backward()
    session.step(inputs, labels, lr=0.5)
    grad = model.head.weight.grad
    assert grad is not None
    (name,) = (entry.name for entry in session.manifest.parameters if entry.slice)
    expected = (model.head.weight.detach() - 0.5 * grad)[:, 2:5]
    torch.testing.assert_close(session.state[name], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "eager"),
    [
        ("sgd --weight-decay 0.1", lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1)),
        (
            "momentum --momentum 0.8 --nesterov --weight-decay 0.1 --clip-norm 0.2",
            lambda p: torch.optim.SGD(p, 0.1, 0.8, weight_decay=0.1, nesterov=True),
        ),
        (
            "adamw --betas 0.8,0.9 --eps 1e-6 --weight-decay 0.1",
            lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.9), 1e-6, 0.1),
        ),
        ("lion --betas 0.8,0.9 --weight-decay 0.1", None),
    ],
)
def test_optimizers(tmp_path: Path, capsys: Capture, arguments: str, eager: Any) -> None:
    model, path = Scorer(), tmp_path / "model.pt"
    save_state(path, model)
    options = ("--input-shape", 6, "--batch-size", 4, "--loss", "mse", "--target", "portable")
    factory = ("--model", "tests.export_models:Scorer", "--optimizer", *arguments.split())
    session = run_export(capsys, path, *factory, *options)
    name, *_ = arguments.split()
    assert session.manifest.optimizer["name"] == name
    assert session.manifest.optimizer["weight_decay"] == 0.1
    clip = 0.2 if "--clip-norm" in arguments else None
    assert session.manifest.clip_norm == clip
    optimizer = eager(model.parameters()) if eager else None
    before = session.state
    for _ in range(3):
        inputs, targets = torch.randn(4, 6), torch.randn(4, 2)
        session.step(inputs, targets, lr=0.1)
        if optimizer:
            optimizer.zero_grad()
            mse_loss(model(inputs), targets).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    for parameter, value in model.named_parameters():
        if optimizer:
            torch.testing.assert_close(session.state[parameter], value.detach())
        else:
            assert not torch.equal(session.state[parameter], before[parameter])


# The process


def test_the_command_prints_its_report_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Classifier(), (features()[0],)), path)
    done = subprocess.run(
        [sys.executable, "-m", "pockmobile.export", str(path), "--target", "portable"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for expected in (
        "model      model for portable\n",
        "plan       full\n",
        "\ntrained: 6 tensors, 105 values\n",
        "\nmethod ",
        "\noutside the delegate: ",
        f"\nwrote {tmp_path}/model.pte in ",
        ", peak memory ",
    ):
        assert expected in done.stdout
