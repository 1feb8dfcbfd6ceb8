"""What `scripts/bench.py` measured, what is wrong with it, and its file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, final

from pockmobile.artifact.files import atomic_write
from pockmobile.errors import UsageError
from scripts.benchmark.variants import VARIANTS

FORMAT: Final = 1
LEAST_FALL: Final = 0.001
"""The share by which a loss must fall to count as learning; rounding is far less."""
NUM_COMPARED: Final = 2
"""Steps after which losses of the same training are compared: soon they drift apart, since
rounding decides which of a random net's activations are cut off."""
MOST_DEVIATION: Final = 0.05
"""The share of eager's fall by which they may differ."""


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """One variant: `losses` before each step of the check, `seconds` of a step by round.

    What a variant has not (a file, a plan of memory) is None.
    """

    variant: str
    losses: Sequence[float]
    seconds: Sequence[float]
    steps_per_round: int
    user_seconds: float
    baseline_bytes: int
    peak_bytes: int
    planned_bytes: int | None = None
    workspace_bytes: int | None = None
    file_bytes: int | None = None
    export_seconds: float | None = None
    export_peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Seconds of a step in the median round."""
        return median(self.seconds)

    @property
    def minimum(self) -> float:
        """Seconds of a step in the fastest round."""
        return min(self.seconds)

    @property
    def memory_bytes(self) -> int:
        """Resident bytes at most, over those after the imports."""
        return max(0, self.peak_bytes - self.baseline_bytes)


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """One work, batch and number of threads; `skipped` says why a variant was not measured.

    `load` is the machine's load average (of one minute) before the rounds and after.
    """

    work: str
    batch: int
    threads: int
    plan: str
    lr: float
    load: tuple[float, float]
    machine: Mapping[str, str]
    measured: Sequence[Measured]
    skipped: Mapping[str, str]

    @property
    def title(self) -> str:
        """What was measured, for people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.work}, batch {self.batch}, {self.plan}, {threads}"

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What a later measurement of the same replaces."""
        return self.work, self.batch, self.threads, self.plan


@final
@dataclass(frozen=True)
class Fault:
    """What is wrong with a variant; `is_peer` if that is no fault of ours."""

    variant: str
    text: str
    is_peer: bool


def faults(case: Case) -> list[Fault]:
    """Returns the variants that were not measured, learnt nothing or train something else."""
    skipped = [
        Fault(name, f"not measured: {reason}", VARIANTS[name].may_fail)
        for name, reason in case.skipped.items()
    ]
    known = {item.variant: item for item in case.measured}
    wrong = {name: _what_is_wrong(item, known) for name, item in known.items()}
    return [
        *skipped,
        *(Fault(name, text, VARIANTS[name].is_peer) for name, text in wrong.items() if text),
    ]


def _what_is_wrong(item: Measured, known: Mapping[str, Measured]) -> str:
    """Returns what is wrong with the losses of a variant, "" if nothing."""
    if not has_learnt(item.losses):
        return f"its loss did not fall: {item.losses[0]:.4f} to {item.losses[-1]:.4f}"
    oracle = known.get(VARIANTS[item.variant].oracle)
    if oracle is None or agree(item.losses, oracle.losses):
        return ""
    here, there = item.losses[NUM_COMPARED], oracle.losses[NUM_COMPARED]
    return (
        f"it trains something else: its loss is {here:.4f} after {NUM_COMPARED} steps, "
        f"that of {oracle.variant} {there:.4f}"
    )


def has_learnt(losses: Sequence[float]) -> bool:
    """Whether the last loss is finite and clearly below the first."""
    # Written so that it is false of NaN.
    return losses[-1] < losses[0] * (1 - LEAST_FALL)


def agree(losses: Sequence[float], oracle: Sequence[float]) -> bool:
    """Whether the first steps of two trainings show the same losses, but for rounding."""
    pairs = list(zip(losses, oracle, strict=True))[: NUM_COMPARED + 1]
    return all(
        abs(here - there) <= MOST_DEVIATION * abs(oracle[0] - pairs[-1][1])
        for here, there in pairs
    )


def is_broken(case: Case) -> bool:
    """Whether the run has failed: a fault of ours, or a variant whose loss did not fall."""
    learnt = all(has_learnt(item.losses) for item in case.measured)
    return not learnt or any(not fault.is_peer for fault in faults(case))


def read_results(path: Path) -> list[Case]:
    """Returns the cases in a file, none if there is no file.

    Raises:
        UsageError: the file is not one that `write_results` wrote.
    """
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise UsageError(f"{path} has format {data['format']}, expected {FORMAT}; move it")
        return [_case(fields) for fields in data["cases"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path} is no file of results ({type(error).__name__}: {error}); move it"
        ) from error


def add_result(path: Path, case: Case) -> None:
    """Writes a case into a file of results, in the place of a former one, all or nothing.

    Raises:
        UsageError: the file is not one of results, or cannot be written.
    """
    cases = [old for old in read_results(path) if old.key != case.key]
    data = {"format": FORMAT, "cases": [asdict(item) for item in [*cases, case]]}
    try:
        atomic_write(path, (json.dumps(data, indent=1) + "\n").encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _case(fields: dict[str, Any]) -> Case:
    measured = [Measured(**item) for item in fields["measured"]]
    return Case(**{**fields, "measured": measured, "load": tuple(fields["load"])})
