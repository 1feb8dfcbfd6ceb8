"""The command line of export: arguments, messages, exit status; the compiler is a fake."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pockmobile import __main__, export
from pockmobile.errors import ModelError, UnsupportedOperatorError
from pockmobile.optim import SGD, AdamW, Lion, Momentum
from pockmobile.targets import CoreML, Qnn


@dataclass
class FakeProgram:
    """Writes one byte."""

    def save(self, path: Path) -> None:
        path.write_bytes(b"\0")

    def report(self) -> str:
        return "the report"


@dataclass
class FakeCompiler:
    """Records what it is called with, and fails if it is told to."""

    error: Exception | None = None
    model: Any = None
    inputs: tuple[torch.Tensor, ...] = ()
    targets: tuple[torch.Tensor, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def compile(
        self,
        model: Any,
        example_args: tuple[torch.Tensor, ...],
        example_targets: tuple[torch.Tensor, ...] | None,
        *,
        progress: Callable[[str], None],
        **options: Any,
    ) -> FakeProgram:
        progress("capture")
        if self.error is not None:
            raise self.error
        self.model, self.inputs, self.targets = model, example_args, example_targets
        self.options = options
        return FakeProgram()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    fake = FakeCompiler()
    module = ModuleType("pockmobile.compiler")
    module.compile = fake.compile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pockmobile.compiler", module)
    return fake


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    exported = torch.export.export(nn.Linear(3, 2), (torch.ones(4, 3),))
    torch.export.save(exported, path)
    return path


def my_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).abs().mean()


def make_linear() -> nn.Module:
    return nn.Linear(3, 2)


def test_the_defaults(
    compiler: FakeCompiler, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(model)]) == 0
    assert model.with_suffix(".pte").read_bytes() == b"\0"
    assert isinstance(compiler.model, torch.export.ExportedProgram)
    assert compiler.inputs[0].shape == (4, 3)
    assert compiler.targets is None
    assert compiler.options == {
        "example_kwargs": {},
        "loss": "cross_entropy",
        "plan": "full",
        "optimizer": SGD(),
        "clip_norm": None,
        "target": "xnnpack",
        "predict_batch_size": 1,
        "split": False,
        "frozen_weights": "fp32",
        "memory_budget": None,
        "loss_chunk": None,
        "name": "model",
    }
    output, errors = capsys.readouterr()
    assert output.startswith("the report\nwrote ")
    assert "peak memory" in output
    # Not a terminal: no progress.
    assert errors == ""


def test_all_options(compiler: FakeCompiler, tmp_path: Path) -> None:
    weights, output = tmp_path / "weights.pt", tmp_path / "net.pte"
    torch.save(nn.Linear(3, 2).state_dict(), weights)
    arguments = (
        f"{weights} -o {output} --model {__name__}:make_linear --input-shape 3 --batch-size 2 "
        f"--predict-batch-size 3 --loss {__name__}:my_loss --plan last:2 --clip-norm 1.5 "
        f"--target portable --split --quiet"
    )
    assert export.main(arguments.split()) == 0
    assert output.exists()
    assert isinstance(compiler.model, nn.Linear)
    assert compiler.inputs[0].shape == (2, 3)
    assert compiler.options["loss"] is my_loss
    assert compiler.options["plan"] == "last:2"
    assert compiler.options["clip_norm"] == 1.5
    assert compiler.options["target"] == "portable"
    assert compiler.options["predict_batch_size"] == 3
    assert compiler.options["split"] is True
    assert compiler.options["name"] == "Linear"


def test_core_ml_with_options(compiler: FakeCompiler, model: Path) -> None:
    assert export.main([str(model), "--target", "coreml"]) == 0
    assert compiler.options["target"] == CoreML()
    arguments = "--target coreml --precision fp16 --ios 16 --compute-units cpu_and_ne"
    assert export.main([str(model), *arguments.split(), "--loss-scale", "64"]) == 0
    assert compiler.options["target"] == CoreML(
        precision="fp16", ios=16, compute_units="cpu_and_ne", loss_scale=64.0
    )


def test_quiet_prints_nothing(
    compiler: FakeCompiler, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(model), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "optimizer"),
    [
        ("--optimizer sgd --weight-decay 0.1", SGD(weight_decay=0.1)),
        ("--optimizer momentum", Momentum()),
        (
            "--optimizer momentum --momentum 0.5 --nesterov",
            Momentum(momentum=0.5, nesterov=True),
        ),
        ("--optimizer adamw --betas 0.8,0.9 --eps 1e-6", AdamW(betas=(0.8, 0.9), eps=1e-6)),
        ("--optimizer adamw --weight-decay 0", AdamW(weight_decay=0.0)),
        ("--optimizer lion --betas 0.8,0.9", Lion(betas=(0.8, 0.9))),
    ],
)
def test_optimizers(
    compiler: FakeCompiler, model: Path, arguments: str, optimizer: object
) -> None:
    assert export.main([str(model), *arguments.split()]) == 0
    assert compiler.options["optimizer"] == optimizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--momentum 0.9", "--momentum does not belong to sgd, which takes --weight-decay"),
        ("--optimizer adamw --nesterov", "--nesterov does not belong to adamw"),
        ("--eps 1e-8 --optimizer lion", "it belongs to adamw"),
        ("--betas 0.9", "argument --betas: expected B1,B2 like 0.9,0.99, found '0.9'"),
        ("--optimizer adamw --betas 0.9,2", "betas[1] must be at least 0.0 and below 1.0"),
        ("--optimizer rmsprop", "invalid choice: 'rmsprop'"),
        (
            "--target portable --frozen-weights int4",
            "int4 needs --target xnnpack, found portable",
        ),
        ("--frozen-weights int2", "invalid choice: 'int2'"),
        ("--precision fp16", "--precision needs --target coreml or qnn, found xnnpack"),
        ("--target portable --ios 17", "--ios needs --target coreml, found portable"),
        ("--target coreml --loss-scale 8", "--loss-scale needs --precision fp16"),
        ("--target coreml --ios 14", "argument --ios: invalid choice: 14"),
        (
            "--target coreml --frozen-weights int8",
            "--frozen-weights int8 needs --target xnnpack, found coreml",
        ),
        (
            "--target coreml --plan auto --data x.npz",
            "--plan auto knows what layers cost on xnnpack and portable, found --target coreml",
        ),
        ("--batch-size 0", "argument --batch-size: expected a whole number from 1, found '0'"),
        ("--clip-norm 0", "argument --clip-norm: expected a number above 0, found '0'"),
        ("--clip-norm much", "argument --clip-norm: expected a number above 0, found 'much'"),
        ("--input-shape 3x4", "'3x4' is no input shape"),
        ("--input-shape 3 --example-inputs x.npz", "exclude each other; give one"),
        ("--loss nowhere:loss", "cannot import nowhere: no module named 'nowhere'"),
        ("--batch-size 8", "exported for input of shape [4, 3]"),
        ("-o missing/model.pte", "cannot write missing/model.pte: missing is no directory"),
        ("-o {model}", "would overwrite the model; choose another --output"),
        ("-o .", "cannot write .: . is a directory"),
        ("--frobnicate", "unrecognized arguments: --frobnicate (see --help)"),
    ],
)
def test_wrong_arguments(
    compiler: FakeCompiler,
    model: Path,
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export.main([str(model), *arguments.format(model=model).split()]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not model.with_suffix(".pte").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b"hello", "is no file of a known kind"),
    ],
)
def test_wrong_files(
    compiler: FakeCompiler,
    tmp_path: Path,
    content: bytes | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    before = list(tmp_path.iterdir())
    assert export.main([str(path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("error", "status"),
    [(ModelError("forward fails"), 2), (UnsupportedOperatorError("aten.fft in spectrum"), 1)],
)
def test_the_compilers_errors(
    compiler: FakeCompiler,
    model: Path,
    error: Exception,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiler.error = error
    assert export.main([str(model)]) == status
    assert capsys.readouterr().err == f"error: {error}\n"
    assert list(model.parent.iterdir()) == [model]


def test_our_own_bugs_keep_their_traceback(compiler: FakeCompiler, model: Path) -> None:
    compiler.error = AssertionError("a bug")
    with pytest.raises(AssertionError, match="a bug"):
        export.main([str(model)])


@pytest.mark.parametrize("command", ["pockmobile.analyze", "pockmobile.export", "pockmobile"])
def test_help_does_not_import_torch(command: str) -> None:
    code = f"""
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("{command}", run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: pockmobile")
    # Half a second is the goal; a busy machine may need more.
    assert time.perf_counter() - start < 2


def test_the_commands_stand_under_one_name(
    compiler: FakeCompiler, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["export", str(model), "--quiet"]) == 0
    assert __main__.main([]) == 0
    assert "personalize" in capsys.readouterr().out
    assert __main__.main(["exprot"]) == 2
    assert (
        capsys.readouterr().err
        == "error: no command 'exprot': expected analyze, export, forecast, inspect, "
        "personalize\n"
    )


def test_a_dry_run_for_qnn_compiles_nothing_and_writes_nothing(
    compiler: FakeCompiler, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(model), "--target", "qnn", "--soc", "SM8550", "--dry-run"]
    assert export.main(command) == 0
    assert compiler.options["target"] == Qnn(soc="SM8550", compiles=False)
    assert not model.with_suffix(".pte").exists()
    assert capsys.readouterr().out.startswith("the report\na dry run: wrote nothing in ")
    assert export.main([*command[:-1], "--loss-scale", "64"]) == 0
    assert compiler.options["target"] == Qnn(soc="SM8550", loss_scale=64.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--soc", "SM8550"], "--soc needs --target qnn, found xnnpack"),
        (["--loss-scale", "8"], "--loss-scale needs --target coreml or qnn, found xnnpack"),
        (["--target", "qnn", "--ios", "17"], "--ios needs --target coreml, found qnn"),
        (["--target", "qnn", "--soc", "X"], "unknown SoC 'X'"),
        (
            ["--target", "qnn", "--precision", "fp32"],
            "--target qnn has --precision fp16 or int16, found fp32",
        ),
        (
            ["--target", "coreml", "--precision", "int16"],
            "--target coreml has --precision fp32 or fp16, found int16",
        ),
        (
            ["--target", "qnn", "--precision", "int16"],
            "--precision int16 needs --calibration FILE, with examples of two batches at least",
        ),
        (
            ["--target", "qnn", "--calibration", "x.npz"],
            "--calibration needs --target qnn --precision int16",
        ),
    ],
)
def test_options_of_targets(
    arguments: list[str], message: str, compiler: FakeCompiler, model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert export.main([str(model), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_calibration_is_read_in_the_programs_batches(
    model: Path, compiler: FakeCompiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(model), "--quiet"]) == 0
    (x,), rows = compiler.inputs, len(compiler.inputs[0])
    file = tmp_path / "task.npz"
    command = [str(model), "--target", "qnn", "--precision", "int16", "--quiet"]
    command += ["--calibration", str(file), "--calibration-lr", "0.5"]
    for num_rows in (3 * rows - 1, rows):
        inputs, labels = torch.randn(num_rows, *x.shape[1:]), torch.arange(num_rows) % 2
        np.savez(file, inputs.numpy(), target=labels.numpy())
        status = export.main(command)
        if num_rows > rows:
            assert status == 0
            target = compiler.options["target"]
            assert target == Qnn(precision="int16", calibration=[0, 0], calibration_lr=0.5)
            first, second = target.calibration
            assert torch.equal(second.inputs[0], inputs[rows : 2 * rows])
            assert torch.equal(first.targets[0], labels[:rows])
    assert status == 2
    message = "needs 2 batches of examples at least to calibrate, found 1"
    assert message in capsys.readouterr().err


def test_a_memory_budget_is_the_programs_own(model: Path, compiler: FakeCompiler) -> None:
    assert export.main([str(model), "--memory-budget", "1.5MB", "--quiet"]) == 0
    assert compiler.options["memory_budget"] == 1_500_000
