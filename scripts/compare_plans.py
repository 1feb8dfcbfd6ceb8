"""Compares update plans on TrashNet, trained through their programs: accuracy, memory, time.

Beside the plan found (`pockmobile analyze` wrote it): everything, the head, biases, the last
blocks and low-rank adapters at equal memory, and PockEngine's hand scheme. Every plan sees
the same batches under the same seed. Results are written as they come:
    python scripts/compare_plans.py mobilenet_v2 --plan plan.json -o plans.jsonl
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.artifact.report import human_bytes
from pockmobile.capture import describe_layers, export_forward
from pockmobile.errors import PlanError
from scripts.realdata import (
    ImageSplit,
    imagenet_images,
    load_mcunet,
    load_mobilenet_v1_025,
    load_trashnet,
    signed_images,
)

BATCH, SIZE, RANK = 8, 128, 4
CLIP_NORM: Final = 1.0
HAND: Final = "sparse:7:7"


def mobilenet_v2() -> nn.Module:
    """Returns MobileNetV2-0.35 (ImageNet, dequantised) with a fresh head of six classes."""
    torch.manual_seed(0)
    model = load_mcunet("mbv2-w0.35")
    model.head = nn.Linear(model.head.in_features, 6)
    return model.eval()


def mobilenet_v1() -> nn.Module:
    """Returns MobileNetV1-0.25 (ImageNet) with a fresh head of six classes."""
    torch.manual_seed(0)
    model = load_mobilenet_v1_025()
    model.fc = nn.Linear(model.fc.in_features, 6)
    return model.eval()


MODELS: Final[dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]]] = {
    "mobilenet_v2": (mobilenet_v2, signed_images),
    "mobilenet_v1": (mobilenet_v1, imagenet_images),
}


@dataclass(frozen=True)
class Run:
    """One plan trained with one seed; `seconds` is its fastest step."""

    plan: str
    seed: int
    accuracy: float
    memory_bytes: int
    state_bytes: int
    seconds: float


def main() -> int:
    """Exports, trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("--plan", type=Path, required=True, help="the plan found")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.1, help="at the start; it falls to 0")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    plans = _programs(arguments.model, arguments.plan, folder)
    runs = _train_all(arguments, plans)
    _print_table(runs, list(plans))
    return 0


def _programs(name: str, found: Path, folder: Path) -> dict[str, Path]:
    """Exports the plans that are missing in `folder`; returns the programs, in order."""
    program = _export(name, "found", str(found), folder)
    limit = memory_of(program)
    paths = {"full": _export(name, "full", "full", folder)}
    for plan in ("head", "bias", HAND):
        paths[plan] = _export(name, plan, plan, folder)
    num_blocks = _num_blocks(name)
    last = [f"last:{number}" for number in range(num_blocks, 0, -1)]
    lora = [f"lora:{RANK}:{number}" for number in range(num_blocks, 0, -1)]
    for candidates in (last, lora):
        plan, path = _largest_that_fits(name, candidates, folder, limit)
        paths[plan] = path
    return {**paths, "found": program}


def _largest_that_fits(
    name: str, plans: list[str], folder: Path, limit: int
) -> tuple[str, Path]:
    """Returns the first plan (they need less and less) within `limit`, or the last one."""
    low, high = 0, len(plans) - 1
    while low < high:
        middle = (low + high) // 2
        if memory_of(_export(name, plans[middle], plans[middle], folder)) <= limit:
            high = middle
        else:
            low = middle + 1
    return plans[low], _export(name, plans[low], plans[low], folder)


def _num_blocks(name: str) -> int:
    """Returns how many blocks `last:N` can count."""
    model, images = MODELS[name][0](), torch.zeros(BATCH, 3, SIZE, SIZE)
    layers = describe_layers(export_forward(model, (images,)))
    for number in range(len(layers), 0, -1):
        try:
            pockmobile.plan.resolve_plan(f"last:{number}", layers)
        except PlanError:
            continue
        return number
    raise PlanError(f"{name} has no blocks")


def _export(name: str, label: str, plan: str, folder: Path) -> Path:
    path = folder / f"{label.replace(':', '-')}.pte"
    if not path.exists():
        example = torch.zeros(BATCH, 3, SIZE, SIZE)
        program = pockmobile.compile(
            MODELS[name][0](),
            (example,),
            plan=plan,
            clip_norm=CLIP_NORM,
            predict_batch_size=BATCH,
        )
        program.save(path)
    return path


def memory_of(path: Path) -> int:
    """Returns the bytes that a training step needs."""
    method = pockmobile.Session(path).manifest.methods["train_step"]
    return method.planned_bytes + method.workspace_bytes


def _train_all(arguments: argparse.Namespace, plans: dict[str, Path]) -> list[Run]:
    output: Path = arguments.output
    lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    known = {(run.plan, run.seed) for run in runs}
    seeds = range(arguments.seeds)
    missing = [(plan, seed) for seed in seeds for plan in plans if (plan, seed) not in known]
    with (
        ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool,
        output.open("a", encoding="utf-8") as file,
    ):
        futures = [
            pool.submit(
                _train, arguments.model, plan, plans[plan], seed, arguments.epochs, arguments.lr
            )
            for plan, seed in missing
        ]
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            runs.append(future.result())
            print(json.dumps(asdict(runs[-1])), file=file, flush=True)
    return runs


def _train(name: str, plan: str, path: Path, seed: int, epochs: int, lr: float) -> Run:
    torch.set_num_threads(1)
    data, normalize = load_trashnet(SIZE), MODELS[name][1]
    session = pockmobile.Session(path, threads=1)
    steps = list(_batches(data, seed, epochs))
    fastest = float("inf")
    for number, rows in enumerate(steps):
        images, labels = normalize(data.train_images[rows]), data.train_labels[rows]
        start = time.perf_counter()
        session.step(images, labels, lr=lr * (1 - number / len(steps)))
        fastest = min(fastest, time.perf_counter() - start)
    result = session.evaluate(normalize(data.test_images), data.test_labels)
    state = session.manifest.state_bytes
    return Run(plan, seed, result.accuracy, memory_of(path), state, fastest)


def _batches(data: ImageSplit, seed: int, epochs: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(data.train_labels), generator=generator)
        yield from (rows for rows in order.split(BATCH) if len(rows) == BATCH)


def _print_table(runs: list[Run], plans: list[str]) -> None:
    full = min(run.seconds for run in runs if run.plan == "full")
    print("| plan | test accuracy | memory of a step | state | time of a step |")
    print("|---|---|---|---|---|")
    for plan in plans:
        own = [run for run in runs if run.plan == plan]
        accuracies = [run.accuracy for run in own]
        spread = statistics.stdev(accuracies) / len(own) ** 0.5 if len(own) > 1 else 0.0
        seconds = min(run.seconds for run in own)
        print(
            f"| {plan} | {statistics.fmean(accuracies):.1%} ± {2.78 * spread:.1%} "
            f"| {human_bytes(own[0].memory_bytes)} | {human_bytes(own[0].state_bytes)} "
            f"| {seconds * 1e3:.1f} ms ({seconds / full:.2f} of full) |"
        )


if __name__ == "__main__":
    sys.exit(main())
