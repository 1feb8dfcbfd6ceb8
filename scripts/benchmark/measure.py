"""Measures the variants of one work for `scripts/bench.py`."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol, TypeVar, final

from scripts.benchmark.cache import Cache
from scripts.benchmark.process import Worker
from scripts.benchmark.results import Case, Measured
from scripts.benchmark.variants import Job, Kind, Part, ProgramInfo, Variant, VariantError
from scripts.benchmark.works import Work

NUM_CHECKED: Final = 10
"""Steps of training by which a variant shows that it learns; they warm it up, too."""
ROUND_SECONDS: Final = 0.1
"""A round takes as many steps as fill this time, so that clocks and caches even out."""
_MOST_STEPS: Final = 100
_PAUSE: Final = 0.01
"""Between turns, in seconds: OpenMP's idle threads spin for a few milliseconds."""


class _Named(Protocol):
    @property
    def name(self) -> str:
        """The variant's."""


_Item = TypeVar("_Item", bound=_Named)
_Result = TypeVar("_Result")


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is compared, and how; the plan is the work's own or another."""

    work: Work
    plan: str
    batch: int
    threads: int
    num_rounds: int
    variants: tuple[Variant, ...]

    @property
    def num_stages(self) -> int:
        """How many times `measure` tells its progress, if all variants can be run."""
        return 2 * len(self.variants) + self.num_rounds


def measure(setting: Setting, cache: Cache, progress: Callable[[str], None]) -> Case:
    """Exports, trains and times the variants, all of which are open at once.

    Args:
        setting: what is measured.
        cache: where programs are kept.
        progress: told each stage as it begins.
    """
    skipped: dict[str, str] = {}

    def prepare(variant: Variant) -> _Prepared:
        progress(f"export {variant.name}")
        return _prepare(variant, setting, cache)

    with ExitStack() as stack:

        def start(prepared: _Prepared) -> _Run:
            progress(f"open {prepared.name}")
            log = cache.logs / f"{prepared.name}.log"
            worker = stack.enter_context(Worker(prepared.job, cache, log))
            return _Run.warmed_up(prepared, worker, setting.work.lr)

        prepared = _each(setting.variants, prepare, skipped)
        runs = _each(prepared, start, skipped)
        load = os.getloadavg()[0]
        for number in range(setting.num_rounds):
            progress(f"round {number + 1}")
            runs = _each(runs, _Run.take_turn, skipped)
        return Case(
            work=setting.work.name,
            batch=setting.batch,
            threads=setting.threads,
            plan=setting.plan,
            lr=setting.work.lr,
            load=(load, os.getloadavg()[0]),
            machine=_machine(),
            measured=_each(runs, _Run.finish, skipped),
            skipped=skipped,
        )


def num_steps_of_round(seconds: float) -> int:
    """Returns how many steps of so many seconds a round takes."""
    return min(_MOST_STEPS, max(1, round(ROUND_SECONDS / seconds)))


def _each(
    items: Iterable[_Item], action: Callable[[_Item], _Result], skipped: dict[str, str]
) -> list[_Result]:
    """Returns what an action makes of each item, and notes why it fails for some."""
    results = []
    for item in items:
        try:
            results.append(action(item))
        except VariantError as error:
            skipped[item.name] = str(error)
    return results


@final
@dataclass(frozen=True)
class _Prepared:
    """A variant that can be opened, and the file of its program, if it has one."""

    variant: Variant
    job: Job
    info: ProgramInfo | None

    @property
    def name(self) -> str:
        return self.variant.name


def _prepare(variant: Variant, setting: Setting, cache: Cache) -> _Prepared:
    work, batch = setting.work.name, setting.batch
    path: Path | None = None
    info: ProgramInfo | None = None
    parts: Mapping[str, Part] | None = None
    plan = variant.plan(setting.plan)
    if variant.engine != "eager":
        kind: Kind = variant.engine
        if variant.is_split:
            kind = "split"
        elif variant.frozen_weights != "fp32":
            kind = variant.frozen_weights
        detail = variant.lowering if variant.engine == "stock" else plan
        path, info = cache.program(kind, work, batch, detail, variant.without)
        parts = info.parts if variant.engine == "stock" else None
    elif variant.trains != "full":
        # The exported program says what the plan trains.
        parts = cache.program("ours", work, batch, plan)[1].parts
    job = Job(
        engine=variant.engine,
        work=work,
        inputs=str(cache.inputs(work, batch)),
        threads=setting.threads,
        program=None if path is None else str(path),
        parts=parts,
        tied=info.tied if info else (),
        is_compiled=variant.is_compiled,
    )
    return _Prepared(variant, job, info)


@final
@dataclass(frozen=True)
class _Run:
    """A variant at work: seconds of a step by round, and user CPU seconds of a step."""

    prepared: _Prepared
    worker: Worker
    losses: tuple[float, ...]
    num_steps: int
    seconds: list[float] = field(default_factory=list)
    user_seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.prepared.name

    @staticmethod
    def warmed_up(prepared: _Prepared, worker: Worker, lr: float) -> "_Run":
        steps = worker.step(NUM_CHECKED, lr)
        (last,) = worker.step(1, 0.0).losses
        return _Run(
            prepared, worker, (*steps.losses, last), num_steps_of_round(min(steps.seconds))
        )

    def take_turn(self) -> "_Run":
        """Takes one round: a step to warm the caches, if it is short, and the timed ones."""
        time.sleep(_PAUSE)
        if self.num_steps > 1:
            self.worker.step(1, 0.0)
        # At a rate of 0: the losses, and so the times, are the same however many steps.
        steps = self.worker.step(self.num_steps, 0.0)
        self.seconds.append(sum(steps.seconds) / self.num_steps)
        self.user_seconds.append(steps.user_seconds / self.num_steps)
        return self

    def finish(self) -> Measured:
        """Ends the training, and returns what it showed."""
        memory, info, program = (
            self.worker.memory(),
            self.prepared.info,
            self.prepared.job.program,
        )
        return Measured(
            variant=self.name,
            losses=self.losses,
            seconds=self.seconds,
            steps_per_round=self.num_steps,
            user_seconds=sum(self.user_seconds) / len(self.user_seconds),
            baseline_bytes=memory.baseline_bytes,
            peak_bytes=memory.peak_bytes,
            planned_bytes=info and info.planned_bytes,
            workspace_bytes=info and info.workspace_bytes,
            file_bytes=_size_of(Path(program)) if program else None,
            export_seconds=info and info.seconds,
            export_peak_bytes=info and info.peak_bytes,
        )


def _size_of(path: Path) -> int:
    """Returns the bytes of a file, or of the files in a folder."""
    files = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _machine() -> dict[str, str]:
    return {
        "processor": platform.machine(),
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "executorch", "pockmobile")},
    }
