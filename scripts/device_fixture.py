"""Makes a folder by which a device is checked: a program, its batches, the losses expected.

    python scripts/device_fixture.py coreml -o fixture --precision fp16
    python scripts/device_fixture.py xnnpack -o fixture

writes `model.pte`, `inputs.safetensors` (tensors `<step>.<input>`), the same tensors as raw
`inputs/<step>.<input>.bin` (little-endian, in C order), and `expected.json`: the learning
rate, the names of a step's inputs in order with dtype and shape, eager PyTorch's loss at each
step, and how far a device's may be from it, relatively.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.commands import run
from pockmobile.models import mobilenet_v2
from pockmobile.targets import Target

FORMAT: Final = 1
PROGRAM: Final = "model.pte"
INPUTS: Final = "inputs.safetensors"
EXPECTED: Final = "expected.json"
NUM_STEPS: Final = 20
LR: Final = 0.0625
"""A number that float32 holds exactly."""
_TOLERANCES: Final = {"fp32": 1e-3, "fp16": 2e-2}
_BATCH: Final = 8


def small_model() -> nn.Module:
    """Returns a model with convolutions (frozen and trained), a norm and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, 4),
    ).eval()


def make_batches(side: int, num_classes: int) -> list[dict[str, Tensor]]:
    """Returns the batches of all steps: images whose brightest part tells the class."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(NUM_STEPS):
        labels = torch.randint(num_classes, (_BATCH,), generator=generator)
        images = torch.randn((_BATCH, 3, side, side), generator=generator) * 0.3
        columns = side // num_classes
        for row, label in enumerate(labels.tolist()):
            images[row, :, :, label * columns : (label + 1) * columns] += 1.0
        batches.append({"input": images, "target": labels})
    return batches


def eager_losses(
    model: nn.Module, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> list[float]:
    """Returns the losses of plain SGD on the named parameters in eager PyTorch."""
    trained = {name: value for name, value in model.named_parameters() if name in names}
    optimizer = torch.optim.SGD(trained.values(), lr=LR)
    losses = []
    for batch in batches:
        loss = nn.functional.cross_entropy(model(batch["input"]), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def write_fixture(
    folder: Path, target: str | Target, *, tolerance: float, is_large: bool = False
) -> None:
    """Compiles the program and writes the folder."""
    model = mobilenet_v2(0.35, num_classes=4).eval() if is_large else small_model()
    batches = make_batches(96 if is_large else 16, 4)
    plan = "sparse:7:7" if is_large else "full"
    program = pockmobile.compile(model, (batches[0]["input"],), plan=plan, target=target)
    folder.mkdir(parents=True, exist_ok=True)
    program.save(folder / PROGRAM)
    step = program.manifest.methods["train_step"]
    ports = [*step.inputs_of("input"), *step.inputs_of("target")]
    pairs = zip(ports, ("input", "target"), strict=True)
    keys = {port.name: key for port, key in pairs}
    tensors = {
        f"{number}.{name}": batch[key]
        for number, batch in enumerate(batches)
        for name, key in keys.items()
    }
    save_file(tensors, folder / INPUTS)
    raw = folder / "inputs"
    raw.mkdir(exist_ok=True)
    for name, tensor in tensors.items():
        (raw / f"{name}.bin").write_bytes(tensor.numpy().tobytes())
    names = [entry.parameter for entry in program.manifest.parameters]
    expected = {
        "format": FORMAT,
        "target": program.manifest.target,
        "lr": LR,
        "inputs": [
            {"name": port.name, "dtype": port.dtype, "shape": port.shape} for port in ports
        ],
        "tolerance": tolerance,
        "losses": eager_losses(model, names, batches),
    }
    (folder / EXPECTED).write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=("coreml", "xnnpack"))
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--precision", choices=tuple(_TOLERANCES), default="fp32")
    parser.add_argument("--ios", type=int, default=17, help="for coreml (default: 17)")
    parser.add_argument(
        "--large", action="store_true", help="MobileNetV2-0.35 at 96 px with sparse:7:7"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    target: str | Target = options.target
    if options.target == "coreml":
        target = pockmobile.CoreML(precision=options.precision, ios=options.ios)
    write_fixture(
        options.output,
        target,
        tolerance=_TOLERANCES[options.precision],
        is_large=options.large,
    )
    print(f"wrote {options.output}")


if __name__ == "__main__":
    sys.exit(main())
