"""A program is forecast on the meta device as it would be, without its weights in memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pockmobile
from pockmobile.commands import peak_memory
from pockmobile.errors import UsageError
from pockmobile.forecast import main
from pockmobile.models.llama import Llama

LENGTH = 16


def llama() -> Llama:
    return Llama(num_tokens=512, context=LENGTH, width=64, hidden=96, num_blocks=1)


def large() -> Llama:
    """2.3 GB of weights."""
    return Llama(
        num_tokens=128_256, context=64, width=2048, hidden=8192, num_blocks=1, is_tied=False
    )


def programs(
    make: Any, inputs: torch.Tensor, **settings: Any
) -> tuple[pockmobile.Program, pockmobile.Program]:
    """Returns the real program and its forecast."""
    real = pockmobile.compile(make(), (inputs,), **settings)
    with torch.device("meta"):
        model = make()
    return real, pockmobile.compile(model, (inputs.to("meta"),), **settings)


def check(real: pockmobile.Program, told: pockmobile.Program) -> None:
    for name, method in real.manifest.methods.items():
        forecast = told.manifest.methods[name]
        assert forecast.planned_bytes == pytest.approx(method.planned_bytes, rel=0.01), name
        assert forecast.workspace_bytes == method.workspace_bytes, name
        assert forecast.num_delegated == method.num_delegated, name
    assert told.manifest.state_bytes == real.manifest.state_bytes
    assert told.num_bytes == pytest.approx(len(real.buffer), rel=0.1)
    assert len(told.buffer) < len(real.buffer)


@pytest.mark.parametrize(
    "held",
    ["int8", *(pytest.param(held, marks=pytest.mark.slow) for held in ("fp32", "int4"))],
)
def test_a_language_model_is_forecast(held: str) -> None:
    torch.manual_seed(0)
    inputs = torch.zeros(2, LENGTH, dtype=torch.int64)
    real, told = programs(
        llama,
        inputs,
        loss="next_token",
        plan="lora:4",
        frozen_weights=held,
        loss_chunk=256,
    )
    check(real, told)
    assert told.manifest.frozen_bytes == pytest.approx(real.manifest.frozen_bytes, rel=0.02)


@pytest.mark.parametrize(
    "target", ["xnnpack", pytest.param("portable", marks=pytest.mark.slow)]
)
def test_any_model_is_forecast(target: str) -> None:
    torch.manual_seed(0)

    def net() -> nn.Module:
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 5)).eval()

    check(*programs(net, torch.zeros(4, 3, 8, 8), plan="head", target=target))


def test_weights_are_not_in_memory() -> None:
    before = peak_memory()
    with torch.device("meta"):
        model, tokens = large(), torch.zeros(1, 64, dtype=torch.int64)
    program = pockmobile.compile(
        model, (tokens,), loss="next_token", plan="lora:4", frozen_weights="int8"
    )
    assert program.num_bytes > 600e6
    assert peak_memory() - before < 400e6
    assert program.manifest.methods["train_step"].num_partitions == 1


def test_a_forecast_cannot_be_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        model, inputs = nn.Linear(4, 3), torch.zeros(2, 4)
    with pytest.raises(UsageError, match="the model is on the meta device"):
        pockmobile.compile(model, (inputs,)).save(tmp_path / "model.pte")


_COMMAND = (
    "tests.test_forecast:llama", "--input-shape", f"{LENGTH}:int64", "--batch-size", "2",
    "--loss", "next_token", "--plan", "lora:4", "--optimizer", "momentum",
)  # fmt: skip


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quiet", *_COMMAND]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "Llama", "for", "xnnpack"]
    named = {line.split()[0]: line for line in lines if line}
    # Queries and output, keys and values, three feed-forward layers; in and out of each.
    trained = 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    assert named["trained"].split()[1:] == [
        f"{4 * trained / 1e3:.1f}",
        "kB,",
        f"{trained:,}",
        "values",
    ]
    assert named["optimizer"].split()[1:] == [f"{4 * trained / 1e3:.1f}", "kB"]
    assert float(named["train_step"].split()[1]) > 0
    assert "peak memory" in lines[-1]


def test_mistakes_are_one_line() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pockmobile.forecast",
            "tests.test_forecast:LENGTH",
            *_COMMAND[1:],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: tests.test_forecast:LENGTH is a int, expected a function or class\n"
    )
