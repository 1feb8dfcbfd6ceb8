"""Measures how well the cost model predicts exported programs, and fits its rates.

For each model, random plans are exported and timed. The rates are fitted to some of them
(`--fit 0` takes those in `pockmobile.cost`); the errors are those of others. Results are
written as they come:
    python scripts/calibrate.py --target xnnpack -o calibration
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile import models
from pockmobile.capture import describe_layers, export_forward
from pockmobile.cost import CostModel, Work, cost_model
from pockmobile.cost.rates import RATES
from pockmobile.loss import CrossEntropy
from pockmobile.models.mobilenet_v1 import MobileNetV1
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.optim import SGD
from pockmobile.space import Selection, UpdateSpace, update_space
from pockmobile.targets import resolve_target

_NUM_SWEEPS: Final = 3


def _keyboard() -> nn.Module:
    return TransformerLM(num_tokens=4096, context=32, width=128, num_blocks=4, num_heads=4)


SUBJECTS: Final[Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]]] = {
    "mobilenet_v2": (
        lambda: models.mobilenet_v2(0.35, num_classes=6),
        lambda: torch.randn(8, 3, 128, 128),
    ),
    "mobilenet_v1": (
        lambda: MobileNetV1(width=0.25, num_classes=6),
        lambda: torch.randn(8, 3, 128, 128),
    ),
    "keyboard_lm": (_keyboard, lambda: torch.randint(4096, (8, 32))),
    # Other proportions of work, for the rates alone.
    "mobilenet_v2 batch 1": (
        lambda: models.mobilenet_v2(0.35, num_classes=6),
        lambda: torch.randn(1, 3, 96, 96),
    ),
    "mobilenet_v2 1.0": (
        lambda: models.mobilenet_v2(1.0, num_classes=6),
        lambda: torch.randn(1, 3, 160, 160),
    ),
}
CHECKED: Final = ("mobilenet_v2", "mobilenet_v1", "keyboard_lm")
FIRST_CHECKED: Final = 1000
"""Plans drawn with this seed and those after it are never fitted."""


class Sample(NamedTuple):
    """One exported plan: what was predicted of it and what it showed."""

    subject: str
    seed: int
    work: dict[str, float]
    predicted_bytes: int
    shown_bytes: int
    path: str


def main() -> int:
    """Exports, times, fits and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=("xnnpack", "portable"), default="xnnpack")
    parser.add_argument("--fit", type=int, default=12, help="plans that fit the rates; 0: none")
    parser.add_argument("--check", type=int, default=20, help="plans that check them")
    parser.add_argument("--rounds", type=int, default=15, help="steps, of which the fastest")
    parser.add_argument("--jobs", type=int, default=2, help="processes that export")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    samples = _export_all(arguments)
    seconds = _time_all(samples, arguments.output / "seconds.json", arguments.rounds)
    fitted = [sample for sample in samples if sample.seed < FIRST_CHECKED]
    rates = _fit(fitted, seconds) if fitted else _known_rates(arguments.target)
    _report(samples, seconds, rates)
    return 0


def _export_all(arguments: argparse.Namespace) -> list[Sample]:
    folder: Path = arguments.output
    record = folder / "samples.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    done = [Sample(**json.loads(line)) for line in lines]
    known = {(sample.subject, sample.seed) for sample in done}
    wanted = [(subject, seed) for seed in range(arguments.fit) for subject in SUBJECTS]
    wanted += [
        (subject, FIRST_CHECKED + number)
        for number in range(arguments.check)
        for subject in CHECKED
    ]
    missing = [pair for pair in wanted if pair not in known]
    with (
        ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool,
        record.open("a", encoding="utf-8") as file,
    ):
        futures = [pool.submit(_export, *pair, arguments.target, folder) for pair in missing]
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            done.append(future.result())
            print(json.dumps(done[-1]._asdict()), file=file, flush=True)
    return sorted(done, key=lambda sample: (sample.subject, sample.seed))


def _export(subject: str, seed: int, target: str, folder: Path) -> Sample:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, batch = SUBJECTS[subject]
    model, example = make().eval(), batch()
    space, costs = _cost_model(subject, model, example, target)
    selection = _random(space, random.Random(seed))
    plan = space.plan(selection)
    estimate = costs.estimate(plan.update)
    program = pockmobile.compile(model, (example,), plan=plan, target=target)
    path = folder / f"{subject.replace(' ', '-')}-{seed}.pte"
    program.save(path)
    method = program.manifest.methods["train_step"]
    shown = method.planned_bytes + method.workspace_bytes
    work = {kind.value: amount for kind, amount in estimate.work.items()}
    return Sample(subject, seed, work, estimate.memory_bytes, shown, str(path))


_MODELS: dict[str, tuple[UpdateSpace, CostModel]] = {}
"""Kept from one export to the next in the same process."""


def _cost_model(
    subject: str, model: nn.Module, example: Tensor, target: str
) -> tuple[UpdateSpace, CostModel]:
    if subject not in _MODELS:
        forward = export_forward(model, (example,))
        shapes = {name: forward.parameters[name].shape for name in forward.trainable}
        space = update_space(describe_layers(forward), shapes)
        costs = cost_model(
            forward, CrossEntropy(), space, optimizer=SGD(), target=resolve_target(target)
        )
        _MODELS[subject] = space, costs
    return _MODELS[subject]


def _random(space: UpdateSpace, rng: random.Random) -> Selection:
    """Draws how deep and how densely a plan trains, then what it trains of each layer."""
    first = int(rng.random() * len(space.layers))
    share = rng.choice((0.1, 0.3, 0.6))
    numbers = [
        rng.randint(1, len(layer.options)) if place >= first and rng.random() < share else 0
        for place, layer in enumerate(space.layers)
    ]
    if not any(numbers) and not space.base:
        numbers[-1] = 1
    return tuple(numbers)


def _time_all(samples: Sequence[Sample], record: Path, num_rounds: int) -> dict[str, float]:
    """Returns the fastest step of each program, in sweeps over all of them.

    A machine is now faster, now slower: what is timed minutes apart is not comparable.
    """
    times: dict[str, list[float]] = json.loads(record.read_text()) if record.exists() else {}
    for _, sample in tqdm(list(product(range(_NUM_SWEEPS), samples)), disable=None):
        found = times.setdefault(sample.path, [])
        if len(found) < _NUM_SWEEPS:
            found.append(_fastest_step(Path(sample.path), num_rounds))
            record.write_text(json.dumps(times), encoding="utf-8")
    return {path: min(found) for path, found in times.items()}


def _fastest_step(path: Path, num_rounds: int) -> float:
    session = pockmobile.Session(path, threads=1)
    inputs = [
        torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype))
        for tensor in session.manifest.methods["train_step"].inputs
        if tensor.role in ("input", "target")
    ]
    times = []
    for _ in range(num_rounds):
        start = time.perf_counter()
        session.step(*inputs, lr=1e-4)
        times.append(time.perf_counter() - start)
    return min(times)


def _known_rates(target: str) -> dict[str, float]:
    return {kind.value: RATES[target].get(kind, 0.0) for kind in Work}


def _report(
    samples: Sequence[Sample], seconds: Mapping[str, float], rates: Mapping[str, float]
) -> None:
    for kind, rate in rates.items():
        print(f"Work.{kind.upper()}: {rate:.3g},")
    for subject in CHECKED:
        checked = [s for s in samples if s.subject == subject and s.seed >= FIRST_CHECKED]
        memory = [s.predicted_bytes / s.shown_bytes - 1 for s in checked]
        times = [_predict(s.work, rates) / seconds[s.path] - 1 for s in checked]
        print(f"{subject:14} memory {_errors(memory)}  time {_errors(times)}")


def _errors(errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    return f"median {statistics.median(sizes):6.1%}, worst {max(sizes):6.1%}"


def _predict(work: Mapping[str, float], rates: Mapping[str, float]) -> float:
    return sum(amount * rates[kind] for kind, amount in work.items())


def _fit(samples: Sequence[Sample], seconds: Mapping[str, float]) -> dict[str, float]:
    """Least squares of the relative errors over rates that are not negative."""
    kinds = [kind.value for kind in Work]
    rows = [[s.work.get(kind, 0.0) / seconds[s.path] for kind in kinds] for s in samples]
    matrix: np.ndarray[Any, Any] = np.array(rows)
    rates = np.zeros(len(kinds))
    residual = np.ones(len(samples))
    for _ in range(20_000):
        for place in range(len(kinds)):
            column = matrix[:, place]
            if column.any():
                old = rates[place]
                rates[place] = max(0.0, old + column @ residual / (column @ column))
                residual -= column * (rates[place] - old)
    return dict(zip(kinds, rates.tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
