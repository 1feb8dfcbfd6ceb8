"""Trains a Llama of 100 million parameters through its `.pte`, and says what that takes.

    python scripts/llama_on_phone.py -o llama

Each measurement is a process of its own: the export, the forecast on the meta device, training
through the file (which imports the runtime alone), and eager PyTorch with adapters of the same
ranks. A prompt fills the first half of the tokens, and does not count.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pockmobile.commands import peak_memory

_NUM_STEPS: Final = 20
_RANK: Final = 8
_RATE: Final = 3e-3
_NUM_TOKENS: Final = 32_000
_LENGTH: Final = 128
_SETTINGS: Final[Mapping[str, Any]] = {
    "loss": "next_token",
    "plan": f"lora:{_RANK}",
    "frozen_weights": "int8",
}


def batch() -> tuple[Tensor, Tensor]:
    """Returns tokens of one example, and the same as targets without the prompt."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(_NUM_TOKENS, (1, _LENGTH), generator=generator)
    target = tokens.clone()
    target[:, : _LENGTH // 2] = -100
    return tokens, target


def model() -> nn.Module:
    """Returns the model; on the meta device if that is torch's default."""
    from pockmobile.models import llama_100m

    torch.manual_seed(0)
    return llama_100m().eval()


def export(folder: Path) -> dict[str, Any]:
    """Writes the program."""
    import pockmobile

    tokens, target = batch()
    start = time.perf_counter()
    program = pockmobile.compile(
        model(), (tokens,), (target,), optimizer=pockmobile.AdamW(), **_SETTINGS
    )
    program.save(folder / "llama.pte")
    (folder / "report.txt").write_text(program.report())
    return {"seconds": time.perf_counter() - start, **_bytes_of(program)}


def forecast(_: Path) -> dict[str, Any]:
    """Compiles the model on the meta device."""
    import pockmobile

    start = time.perf_counter()
    with torch.device("meta"):
        net, tokens = model(), torch.zeros(1, _LENGTH, dtype=torch.int64)
    program = pockmobile.compile(net, (tokens,), optimizer=pockmobile.AdamW(), **_SETTINGS)
    return {"seconds": time.perf_counter() - start, **_bytes_of(program)}


def _bytes_of(program: Any) -> dict[str, int]:
    step = program.manifest.methods["train_step"]
    return {
        "file": program.num_bytes,
        "frozen": program.manifest.frozen_bytes,
        "state": program.manifest.state_bytes,
        "planned": step.planned_bytes,
        "workspace": step.workspace_bytes,
    }


def train(folder: Path) -> dict[str, Any]:
    """Trains through the file."""
    from pockmobile import Session

    session = Session(folder / "llama.pte", threads=1)
    inputs, target = batch()
    return _steps(lambda: session.step(inputs, target, lr=_RATE))


def eager(_: Path) -> dict[str, Any]:
    """Trains adapters in eager PyTorch."""
    net = model()
    net.requires_grad_(False)
    factors = [factor for layer in _adapted(net) for factor in layer]
    optimizer = torch.optim.AdamW(factors, lr=_RATE, weight_decay=0.01)
    tokens, target = batch()

    def step() -> float:
        optimizer.zero_grad()
        logits = net(tokens)[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, target[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return _steps(step)


def _adapted(net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Puts an adapter beside each linear layer but the head; returns their factors."""
    found = []
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Linear) or name == "head":
            continue
        down = torch.empty(_RANK, layer.in_features).uniform_(-1, 1) / layer.in_features**0.5
        up = torch.zeros(layer.out_features, _RANK)
        pair = down.requires_grad_(), up.requires_grad_()
        layer.register_forward_hook(_adapter(*pair))
        found.append(pair)
    return found


def _adapter(down: Tensor, up: Tensor) -> Callable[..., Tensor]:
    return lambda _, inputs, output: output + inputs[0] @ down.t() @ up.t()


def _steps(step: Callable[[], float]) -> dict[str, Any]:
    losses, seconds, memory = [], [], []
    for _ in range(_NUM_STEPS):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
        memory.append(peak_memory())
    return {"losses": losses, "seconds": min(seconds), "memory over steps": memory}


_STAGES: Final[Mapping[str, Callable[[Path], dict[str, Any]]]] = {
    "export": export,
    "forecast": forecast,
    "train": train,
    "eager": eager,
}


def measure(stage: str, folder: Path) -> dict[str, Any]:
    """Runs a stage in a process of its own; returns what it measured."""
    command = [sys.executable, __file__, "--output", str(folder), "--stage", stage]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measures, and prints a table; or runs one stage."""
    parser = argparse.ArgumentParser(description="A Llama of 100 M parameters, on the phone.")
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--stage", choices=tuple(_STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        torch.set_num_threads(1)
        result = _STAGES[options.stage](options.output)
        print(json.dumps({**result, "peak": peak_memory()}))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    found = {stage: measure(stage, options.output) for stage in _STAGES}
    (options.output / "measured.json").write_text(json.dumps(found, indent=1))
    _print(found)


def _print(found: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'':12}{'exported':>12}{'forecast':>12}")
    for key in ("file", "frozen", "state", "planned", "workspace", "peak"):
        real, told = found["export"][key], found["forecast"][key]
        print(f"{key:12}{real / 1e6:9.1f} MB{told / 1e6:9.1f} MB")
    for stage in ("train", "eager"):
        first, *_, last = found[stage]["losses"]
        print(
            f"{stage:12}loss {first:.3f} to {last:.3f}, {found[stage]['seconds']:.2f} s a "
            f"step, peak memory of the process {found[stage]['peak'] / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
