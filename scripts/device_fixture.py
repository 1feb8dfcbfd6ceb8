"""Makes what a device is checked with: a program, batches, and the losses that it must come to.

    python scripts/device_fixture.py -o fixture --target qnn --soc SM8650
    python scripts/device_fixture.py -o fixture --target coreml --precision fp16

The folder holds `model.pte`; `inputs.safetensors` with all tensors by name; the same tensors as
raw little-endian bytes, a `.bin` each; `fixture.json` with the losses of eager PyTorch and how
far a device may be from them; and for shell scripts `steps.txt` (a line a step: the loss, then
the files of its inputs) and `method.txt` (the place of `train_step` in the program, and the
number of state tensors, `state_0.bin` and so on).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.artifact.files import atomic_write
from pockmobile.commands import run
from pockmobile.optim import Momentum
from pockmobile.options.targets import TARGETS, add_target_options, check_target, target_of
from pockmobile.targets import resolve_target
from tests.eager import Eager
from tests.parity_cases import SUBJECTS, model_of

LOSS_RELATIVE: Final[Mapping[str, float]] = {"fp32": 1e-4, "fp16": 0.02}
"""How far a loss may be from eager PyTorch's, by what the target computes in."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder")
    parser.add_argument("--target", choices=TARGETS, default="xnnpack")
    add_target_options(parser)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="residual_cnn")
    parser.add_argument("--plan", default="full")
    parser.add_argument("--steps", type=int, default=10)
    return run(lambda: _make(parser.parse_args(argv)))


def _make(options: argparse.Namespace) -> None:
    check_target(options)
    target = resolve_target(target_of(options))
    subject, rule = SUBJECTS[options.subject], Momentum()
    generator = torch.Generator().manual_seed(0)
    batches = [subject.batch(generator) for _ in range(options.steps)]
    model = model_of(options.subject)
    program = pockmobile.compile(
        model, batches[0][:1], batches[0][1:], plan=options.plan, optimizer=rule, target=target
    )
    eager = Eager(model, program, rule)
    state = _initial_state(program, eager)
    losses = [eager.step(*batch, subject.lr) for batch in batches]
    tolerance = LOSS_RELATIVE["fp32" if target.gradient_scale is None else "fp16"]
    _write(options.output, program, state, batches, losses, subject.lr, tolerance)


def _initial_state(program: pockmobile.Program, eager: Eager) -> list[Tensor]:
    """The parameters' values, and zeros for the optimizer's."""
    return [
        eager.leaves[entry.parameter].detach().clone()
        if entry.role == "parameter"
        else torch.zeros(entry.shape)
        for entry in program.manifest.state
    ]


def _write(
    folder: Path,
    program: pockmobile.Program,
    state: Sequence[Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    losses: Sequence[float],
    lr: float,
    tolerance: float,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program.save(folder / "model.pte")
    tensors = {f"state_{index}": value for index, value in enumerate(state)}
    tensors["lr"] = torch.tensor(lr)
    steps = []
    for number, (batch, loss) in enumerate(zip(batches, losses, strict=True)):
        names = [f"step_{number}_{kind}" for kind in ("inputs", "targets")]
        tensors |= dict(zip(names, batch, strict=True))
        steps.append({"loss": loss, "inputs": [*names, "lr"]})
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    for name, value in tensors.items():
        (folder / f"{name}.bin").write_bytes(value.numpy().tobytes())
    save_file(tensors, folder / "inputs.safetensors")
    plans = deserialize_pte_binary(program.buffer).program.execution_plan
    method = [plan.name for plan in plans].index("train_step")
    fixture = {
        "format": 1,
        "program": "model.pte",
        "target": program.manifest.target,
        "method_index": method,
        "num_state": len(state),
        "loss_relative": tolerance,
        "steps": steps,
    }
    atomic_write(folder / "fixture.json", json.dumps(fixture, indent=1).encode())
    lines = [f"{s['loss']} {' '.join(f'{name}.bin' for name in s['inputs'])}\n" for s in steps]  # type: ignore
    atomic_write(folder / "steps.txt", "".join(lines).encode())
    atomic_write(folder / "method.txt", f"{method} {len(state)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
