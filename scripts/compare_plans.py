"""Compares update plans on TrashNet, trained through their programs: accuracy, memory, time.

Each plan has the learning rate that suits it best on held-out training images, and sees the
same batches as the others under the same seed. Results are written as they come:
    python scripts/compare_plans.py mobilenet_v2 --plan plan.json -o plans.jsonl
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.capture import export_forward
from scripts import plan_table
from scripts.plan_table import Key, Run
from scripts.realdata import (
    ImageSplit,
    imagenet_images,
    load_mcunet,
    load_mobilenet_v1_025,
    load_trashnet,
    signed_images,
)

BATCH, SIZE = 8, 128
CLIP_NORM: Final = 1.0
HELD_OUT: Final = 7
"""One of so many training images is held out while a learning rate is chosen."""
TRIAL: Final = "held out"

Examples = tuple[Tensor, Tensor]


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


MODELS: Final[dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], str]]] = {
    "mobilenet_v2": (mobilenet_v2, signed_images, "sparse:7:7"),
    "mobilenet_v1": (mobilenet_v1, imagenet_images, "sparse:6:6"),
}
"""Name -> the model, what it makes of images, and PockEngine's scheme for it."""


def main() -> int:
    """Exports, trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("--plan", type=Path, required=True, help="the plan found")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--lr",
        type=float,
        nargs="+",
        default=[0.03, 0.1, 0.3],
        help="at the start (it falls to 0); of several each plan has its best",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    arguments = parser.parse_args()
    plan_table.one_thread()
    name, output = arguments.model, arguments.output
    folder = output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    model, _, hand = MODELS[name]
    forward = export_forward(model(), (torch.zeros(BATCH, 3, SIZE, SIZE),))
    plans = plan_table.equal_memory_plans(
        forward, hand, arguments.plan, partial(_export, name, folder)
    )
    work = partial(_run, name, plans, arguments.epochs)
    trials = [Key(plan, TRIAL, lr) for plan in plans for lr in arguments.lr]
    tried = plan_table.run_all(work, trials, output, arguments.jobs)
    rates = plan_table.best_rates(tried, "accuracy")
    seeds = range(arguments.seeds)
    keys = [Key(plan, str(seed), rates[plan]) for seed in seeds for plan in plans]
    runs = plan_table.run_all(work, keys, output, arguments.jobs)
    plan_table.print_table(runs, ["accuracy"])
    return 0


def _export(name: str, folder: Path, label: str, plan: str) -> Path:
    path = folder / f"{label.replace(':', '-')}.pte"
    if not path.exists():
        program = pockmobile.compile(
            MODELS[name][0](),
            (torch.zeros(BATCH, 3, SIZE, SIZE),),
            plan=plan,
            clip_norm=CLIP_NORM,
            predict_batch_size=BATCH,
        )
        program.save(path)
    return path


def _run(name: str, paths: dict[str, Path], epochs: int, key: Key) -> Run:
    plan_table.one_thread()
    normalize, data = MODELS[name][1], load_trashnet(SIZE)
    is_trial = key.case == TRIAL
    (images, labels), (test_images, test_labels) = _held_out(data) if is_trial else _all(data)
    session = pockmobile.Session(paths[key.plan], threads=1)
    seconds = plan_table.train(
        session,
        lambda rows: (normalize(images[rows]), labels[rows]),
        list(_batches(len(labels), 0 if is_trial else int(key.case), epochs)),
        key.lr,
    )
    accuracy = session.evaluate(normalize(test_images), test_labels).accuracy
    return plan_table.run_of(key, session, paths[key.plan], {"accuracy": accuracy}, seconds)


def _all(data: ImageSplit) -> tuple[Examples, Examples]:
    return (data.train_images, data.train_labels), (data.test_images, data.test_labels)


def _held_out(data: ImageSplit) -> tuple[Examples, Examples]:
    is_held_out = torch.arange(len(data.train_labels)) % HELD_OUT == 0
    return (
        (data.train_images[~is_held_out], data.train_labels[~is_held_out]),
        (data.train_images[is_held_out], data.train_labels[is_held_out]),
    )


def _batches(num_examples: int, seed: int, epochs: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(num_examples, generator=generator)
        yield from (rows for rows in order.split(BATCH) if len(rows) == BATCH)


if __name__ == "__main__":
    sys.exit(main())
