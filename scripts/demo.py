"""The whole path in a minute: export a model, train it with `Session`, compare with eager.

A classifier has learnt ten symbols in one hand; its new owner draws them slanted, thin and
small. The exported program learns the owner's hand from a few hundred drawings.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each side: a fair comparison

import torch
import torch.nn.functional as func
from torch import Tensor, nn

from pockmobile.commands import run, start_runtime
from pockmobile.models import mobilenet_v2

SIZE, CLASSES, BATCH, PLAN = 48, 10, 16, "sparse:6:6"
# The strokes of each symbol: pairs of points in the unit square.
STROKES = (
    ((0, 0, 1, 0), (1, 0, 1, 1), (1, 1, 0, 1), (0, 1, 0, 0)),
    ((0.5, 0, 0.5, 1),),
    ((0, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 1)),
    ((0, 0, 1, 0.5), (1, 0.5, 0, 1)),
    ((0, 0, 0, 0.5), (0, 0.5, 1, 0.5), (0.7, 0, 0.7, 1)),
    ((1, 0, 0, 0), (0, 0, 0, 1), (0, 1, 1, 1)),
    ((0, 0, 1, 1), (1, 0, 0, 1)),
    ((0, 0, 1, 0), (1, 0, 0.4, 1)),
    ((0, 0, 0.5, 1), (0.5, 1, 1, 0)),
    ((0, 0, 0, 1), (0, 0, 1, 0), (0, 0.5, 0.7, 0.5)),
)


def draw(number: int, *, owner: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Draws symbols: images float32 [number, 3, 48, 48] and labels int64 [number]."""
    random = torch.Generator().manual_seed(seed)
    grid = (torch.arange(SIZE) + 0.5) / SIZE
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    labels = torch.randint(CLASSES, (number,), generator=random)
    images = torch.empty(number, SIZE, SIZE)
    for index, label in enumerate(labels.tolist()):
        jitter = torch.rand(5, generator=random).tolist()
        size = (0.45 if owner else 0.55) + 0.15 * jitter[0]
        slant = (0.6 if owner else 0.0) + 0.3 * (jitter[1] - 0.5)
        left, top = (1 - size) * (0.3 + 0.4 * jitter[2]), (1 - size) * (0.3 + 0.4 * jitter[3])
        width = (0.03 if owner else 0.045) + 0.01 * jitter[4]
        ink = torch.zeros(SIZE, SIZE)
        for stroke in STROKES[label]:
            points = torch.tensor(stroke).reshape(2, 2) * size
            points[:, 0] += left - slant * (points[:, 1] - size / 2)
            points[:, 1] += top
            ink = torch.maximum(ink, _line(x, y, points, width))
        images[index] = ink + 0.15 * torch.randn(SIZE, SIZE, generator=random)
    return images.unsqueeze(1).repeat(1, 3, 1, 1), labels


def _line(x: Tensor, y: Tensor, points: Tensor, width: float) -> Tensor:
    (ax, ay), (bx, by) = points.tolist()
    dx, dy = bx - ax, by - ay
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    distance = ((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2).sqrt()
    return (-((distance / width) ** 2)).exp()


def pretrain() -> nn.Module:
    """Trains the model on the maker's hand, in eager PyTorch."""
    torch.manual_seed(0)
    model = mobilenet_v2(0.35, CLASSES)
    images, labels = draw(1600, owner=False, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=125)
    for _ in range(5):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            func.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def eager_step(model: nn.Module, trained: set[str] | None) -> Callable[[Tensor, Tensor], None]:
    """Returns a step of eager PyTorch on the same parameters, or on all of them."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained is None or name in trained)
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(leaves, lr=0.05)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        func.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> int:
    """Runs the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="a folder for the files that it makes")
    keep = parser.parse_args().keep
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as folder:
        return run(lambda: _run(Path(folder)))


def _run(folder: Path) -> None:
    print("1. a model learns ten symbols in its maker's hand (eager PyTorch)", flush=True)
    model = pretrain()
    example = (draw(BATCH, owner=False, seed=2)[0],)
    torch.export.save(torch.export.export(model, example), folder / "model.pt2")

    print("\n2. the command line makes a program of it that trains", flush=True)
    command = "-m pockmobile.export model.pt2 -o model.pte --optimizer momentum --plan"
    print(f"$ python {command} {PLAN}", flush=True)
    subprocess.run([sys.executable, *command.split(), PLAN], cwd=folder, check=True)

    print(
        "\n3. the program learns its owner's hand, on the stock ExecuTorch runtime", flush=True
    )
    # Imported late: the export above ran in a process of its own.
    from pockmobile import Session

    start_runtime()
    session = Session(folder / "model.pte", threads=1)
    images, labels = draw(480, owner=True, seed=3)
    test = draw(400, owner=True, seed=4)
    before = session.evaluate(*test)
    for epoch in range(6):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        losses = [session.step(images[r], labels[r], lr=0.01) for r in order.split(BATCH)]
        print(f"   epoch {epoch + 1}: loss {statistics.mean(losses):.3f}", flush=True)
    after = session.evaluate(*test)
    print(
        f"   accuracy on new drawings: {before.accuracy:.1%} before, {after.accuracy:.1%} after"
    )
    session.save(folder / "me.safetensors")

    print("\n4. a step beside eager PyTorch's, one thread each, interleaved", flush=True)
    rows = slice(0, BATCH)
    trained = {entry.parameter for entry in session.manifest.parameters}
    steps: dict[str, Callable[[], object]] = {
        "pockmobile, sparse": lambda: session.step(images[rows], labels[rows], lr=0.0),
    }
    for name, names in (("eager, same parameters", trained), ("eager, all parameters", None)):
        step = eager_step(model, names)
        steps[name] = lambda step=step: step(images[rows], labels[rows])
    _compare(steps)


def _compare(steps: dict[str, Callable[[], object]], rounds: int = 15) -> None:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            start = time.perf_counter()
            step()
            times[name].append(1000 * (time.perf_counter() - start))
    ours = next(iter(times.values()))
    for name, values in times.items():
        median, least = statistics.median(values), min(values)
        ratio = median / statistics.median(ours)
        print(f"   {name:24} median {median:6.1f} ms, minimum {least:6.1f} ms  {ratio:5.1f}x")


if __name__ == "__main__":
    sys.exit(main())
