"""Trains the plans that people compare, through their programs, and prints what they show.

The plans are one found by `pockmobile analyze`, everything, the head, biases, PockEngine's
hand scheme, and the most last blocks and adapters that need no more memory than the one found.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import pockmobile
from pockmobile.artifact.report import human_bytes
from pockmobile.capture import Forward, describe_layers
from pockmobile.errors import NonFiniteError, PlanError
from pockmobile.sensitivity.intervals import student_t

RANK: Final = 4


class Key(NamedTuple):
    """One run: the plan, the case (a seed or a writer), and the learning rate at the start."""

    plan: str
    case: str
    lr: float


@dataclass(frozen=True)
class Run:
    """What a run showed; `seconds` is its fastest step."""

    key: Key
    metrics: Mapping[str, float]
    memory_bytes: int
    state_bytes: int
    seconds: float


def equal_memory_plans(
    forward: Forward, hand: str, found: Path, export: Callable[[str, str], Path]
) -> dict[str, Path]:
    """Returns the programs of the plans to compare, by the name of the plan.

    Args:
        forward: the exported model.
        hand: a preset made by hand.
        found: the file of the plan found.
        export: makes the program of a plan, and remembers it; takes a name and the plan.
    """
    program = export("found", str(found))
    paths = {plan: export(plan, plan) for plan in ("full", "head", "bias", hand)}
    num_blocks = _num_blocks(forward)
    for preset in ("last:{}", f"lora:{RANK}:{{}}"):
        plans = [preset.format(number) for number in range(num_blocks, 0, -1)]
        plan = _largest_that_fits(plans, export, memory_of(program))
        paths[plan] = export(plan, plan)
    return {**paths, "found": program}


def _largest_that_fits(
    plans: Sequence[str], export: Callable[[str, str], Path], limit: int
) -> str:
    """Returns the first plan (they need less and less) within `limit`, or the last one."""
    low, high = 0, len(plans) - 1
    while low < high:
        middle = (low + high) // 2
        if memory_of(export(plans[middle], plans[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    return plans[low]


def _num_blocks(forward: Forward) -> int:
    """Returns how many blocks `last:N` can count."""
    layers = describe_layers(forward)
    for number in range(len(layers), 0, -1):
        try:
            pockmobile.plan.resolve_plan(f"last:{number}", layers)
        except PlanError:
            continue
        return number
    raise PlanError("the model has no blocks")


def memory_of(path: Path) -> int:
    """Returns the bytes that a training step needs beside frozen weights."""
    method = pockmobile.Session(path).manifest.methods["train_step"]
    return method.planned_bytes + method.workspace_bytes


def train(
    session: pockmobile.Session,
    batch: Callable[[Tensor], tuple[Tensor, Tensor]],
    rows: Sequence[Tensor],
    lr: float,
) -> float:
    """Trains while the rate falls to 0; returns the time of the fastest step, in seconds.

    A run that diverges stays where it was.

    Args:
        session: what is trained.
        batch: returns inputs and targets of some examples.
        rows: the examples of each step.
        lr: the rate at the start.
    """
    fastest = float("inf")
    for number, chosen in enumerate(rows):
        inputs, targets = batch(chosen)
        start = time.perf_counter()
        try:
            session.step(inputs, targets, lr=lr * (1 - number / len(rows)))
        except NonFiniteError:
            break
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def run_of(
    key: Key, session: pockmobile.Session, path: Path, metrics: Mapping[str, float], s: float
) -> Run:
    """Returns a run with the costs of its program; `s` is the time of a step."""
    return Run(key, metrics, memory_of(path), session.manifest.state_bytes, s)


def run_all(
    work: Callable[[Key], Run], keys: Sequence[Key], output: Path, num_processes: int
) -> list[Run]:
    """Runs what `output` does not hold yet, and writes each result there as it comes."""
    known = {run.key: run for run in _read(output)}
    missing = [key for key in keys if key not in known]
    with (
        ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool,
        output.open("a", encoding="utf-8") as file,
    ):
        futures = [pool.submit(work, key) for key in missing]
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            run = future.result()
            known[run.key] = run
            print(json.dumps(asdict(run)), file=file, flush=True)
    return [known[key] for key in keys]


def _read(path: Path) -> Iterable[Run]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        fields = json.loads(line)
        yield Run(**{**fields, "key": Key(*fields["key"])})


def best_rates(runs: Iterable[Run], metric: str) -> dict[str, float]:
    """Returns for each plan the learning rate with the best mean of a metric."""
    values: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        values.setdefault((run.key.plan, run.key.lr), []).append(run.metrics[metric])
    best: dict[str, tuple[float, float]] = {}
    for (plan, lr), found in values.items():
        best[plan] = max(best.get(plan, (-1.0, 0.0)), (statistics.fmean(found), lr))
    return {plan: lr for plan, (_, lr) in best.items()}


def print_table(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Prints a row for each plan: means with intervals of 95 %, and costs."""
    plans = list(dict.fromkeys(run.key.plan for run in runs))
    full = min(run.seconds for run in runs if run.key.plan == "full")
    columns = ["plan", "rate", *metrics, "memory of a step", "state", "time of a step"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for plan in plans:
        own = [run for run in runs if run.key.plan == plan]
        seconds = min(run.seconds for run in own)
        cells = [plan, f"{own[0].key.lr:g}"]
        cells += [interval([run.metrics[metric] for run in own]) for metric in metrics]
        cells += [human_bytes(own[0].memory_bytes), human_bytes(own[0].state_bytes)]
        cells.append(f"{seconds * 1e3:.1f} ms ({seconds / full:.2f} of full)")
        print("| " + " | ".join(cells) + " |")


def interval(values: Sequence[float]) -> str:
    """Returns the mean and the interval of 95 % of values between 0 and 1, in per cent."""
    if len(values) < 2:
        return f"{values[0]:.1%}"
    half = student_t(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.1%} ± {half:.1%}"


def one_thread() -> None:
    """Makes PyTorch work on one thread, as each of several processes should."""
    torch.set_num_threads(1)
