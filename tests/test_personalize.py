"""The command trains a program on a file, says what it learnt, and resumes from checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import pockmobile
from pockmobile import Session
from pockmobile.personalize import main
from tests.tiny_program import NUM_CLASSES, random_rows, write_tiny_program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_program(tmp_path_factory.mktemp("tiny") / "tiny.pte").path


def data_file(path: Path, num_rows: int = 30, seed: int = 0) -> Path:
    """Writes rows whose label is the largest of the first values, which can be learnt."""
    values, kinds, _ = random_rows(num_rows, seed)
    labels = values[:, :NUM_CLASSES].argmax(1)
    tensors = {"values": values, "kinds": kinds, "target": labels}
    safetensors.torch.save_file(tensors, path)
    return path


def test_it_learns_and_says_so(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held_out = data_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    data_file(held_out, 50, seed=1)
    arguments = [program, "--data", data, "--eval-data", held_out, "--epochs", 3, "--lr", 0.5]
    assert main(list(map(str, arguments))) == 0
    output, errors = capsys.readouterr()
    before, *epochs, after = output.splitlines()
    assert before.startswith("before:  loss ")
    assert "of 50)" in before
    assert [line[:19] for line in epochs] == [f"epoch {n}: mean loss " for n in (1, 2, 3)]
    assert after.startswith("after:   loss ")
    assert float(after.split()[2].rstrip(",")) < float(before.split()[2].rstrip(","))
    # Not a terminal: no progress, and nothing of what libraries have to say.
    assert errors == ""


def test_a_checkpoint_is_resumed(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, checkpoint = data_file(tmp_path / "a.safetensors"), tmp_path / "me.safetensors"
    command = [program, "--data", data, "--checkpoint", checkpoint, "--threads", 1]
    assert main(list(map(str, [*command, "--epochs", 2]))) == 0
    saved = f"saved {checkpoint} after 16 steps"
    assert capsys.readouterr().out.splitlines()[-1] == saved
    assert main(list(map(str, command))) == 0
    assert capsys.readouterr().out.startswith(f"resumed from {checkpoint} after 16 steps\n")
    session = Session(program)
    session.restore(checkpoint)
    assert session.num_steps == 24


def test_the_seed_decides_the_order(program: Path, tmp_path: Path) -> None:
    data = data_file(tmp_path / "a.safetensors")
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.checkpoint"
        command = [program, "--data", data, "--checkpoint", path, "--seed", seed]
        assert main(list(map(str, command))) == 0
        states.append(safetensors.torch.load_file(path)["head.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_arrays_without_names_are_taken_in_order(program: Path, tmp_path: Path) -> None:
    values, kinds, labels = (tensor.numpy() for tensor in random_rows(6))
    np.savez(tmp_path / "a.npz", values.astype(np.float64), kinds, target=labels)
    assert main([str(program), "--data", str(tmp_path / "a.npz")]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "a.npz has no targets; add a tensor named `target`"),
        ({"target": [5] * 6}, "a.npz: labels[0] is 5, expected 0 <= value <= 2, or -100"),
        ({"target": [1] * 5}, "a.npz: numbers of rows differ"),
        ({"values": [[0.0]] * 6}, "a.npz: values has shape [6, 1], expected [rows, 5]"),
        ({"values": None}, "a.npz: values is missing"),
        ({"valeus": [1.0]}, "a.npz: unknown name 'valeus': did you mean values"),
    ],
)
def test_wrong_data(
    program: Path,
    tmp_path: Path,
    change: dict[str, list[float] | None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values, kinds, labels = random_rows(6)
    content = {"values": values, "kinds": kinds, "target": labels, **change}
    data, checkpoint = tmp_path / "a.npz", tmp_path / "me.safetensors"
    np.savez(data, **{name: np.array(v) for name, v in content.items() if v is not None})
    command = [str(program), "--data", str(data), "--checkpoint", str(checkpoint)]
    assert main(command) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"error: {tmp_path}/")
    assert message in errors
    assert errors.count("\n") == 1
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("{program}", 2, "the following arguments are required: --data"),
        ("no.pte --data {data}", 1, "cannot read no.pte: No such file or directory"),
        ("{data} --data {data}", 1, "is not an ExecuTorch program"),
        ("{program} --data no.npz", 2, "cannot read no.npz: No such file or directory"),
        ("{program} --data {program}", 2, "tensors are read from .safetensors, .npz or .pt"),
        ("{program} --data {data} --checkpoint no/me", 2, "no is no directory"),
        ("{program} --data {data} --checkpoint {data}", 1, "but not a checkpoint of format 1"),
        ("{program} --data {data} --lr 0", 2, "argument --lr: expected a number above 0"),
        ("{program} --data {data} --epochs 0", 2, "expected a whole number from 1, found '0'"),
        ("{program} --data {data} --lr 3e38", 1, "lower the learning rate"),
    ],
)
def test_wrong_arguments(
    program: Path,
    tmp_path: Path,
    arguments: str,
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = data_file(tmp_path / "a.safetensors")
    command = arguments.format(program=program, data=data).split()
    assert main(command) == status
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_what_fills_no_batch_is_left_out_of_a_loss_without_ignored_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Text of the same length: nothing else in the program moves.
    program = write_tiny_program(
        tmp_path / "tiny.pte", {'"ignored":-100': '"ignored":null'}
    ).path
    data = data_file(tmp_path / "a.safetensors", num_rows=10)
    assert main([str(program), "--data", str(data)]) == 0
    assert f"{data}: the last 2 of 10 rows fill no batch" in capsys.readouterr().out
    few = data_file(tmp_path / "few.safetensors", num_rows=3)
    assert main([str(program), "--data", str(few)]) == 1
    assert "has 3 rows, the program trains on 4 at a time" in capsys.readouterr().err


def test_a_split_program_learns_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    inputs = torch.randn(20, 6)
    data = tmp_path / "data.safetensors"
    labels = inputs[:, :3].argmax(1)
    safetensors.torch.save_file({"input": inputs, "target": labels}, data)
    outputs = []
    for split in (True, False):
        path = tmp_path / f"{split}.pte"
        pockmobile.compile(model, (inputs[:4],), plan="head", split=split).save(path)
        assert main([str(path), "--data", str(data), "--epochs", "3", "--lr", "0.3"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "after:   loss" in outputs[0]
