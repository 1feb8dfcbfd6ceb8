"""Runs units in several processes, each on one thread."""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import RLock, Thread

import torch
from tqdm import tqdm

from pockmobile.capture.cut import first_use
from pockmobile.errors import PockmobileError
from pockmobile.sensitivity.packing import pack, unpack
from pockmobile.sensitivity.prefix import PrefixCache
from pockmobile.sensitivity.schedule import Schedule
from pockmobile.sensitivity.store import Unit
from pockmobile.sensitivity.task import Task
from pockmobile.sensitivity.training import Outcome, fine_tune


def run_units(
    task: Task, units: Sequence[Unit], schedule: Schedule, num_processes: int
) -> Generator[tuple[Unit, Outcome], None, None]:
    """Yields each unit with its outcome, as they are finished.

    Units go in the order of the first layer that they train, so that each process computes
    the frozen prefix of a layer once, from that of the layer before it. One process is this
    one. Closing the iterator, or the end of this process, however it comes, ends the others.

    Raises:
        PockmobileError: a process was killed.
    """
    ordered = sorted(units, key=lambda unit: first_use(task.forward, unit.update))
    num_processes = min(num_processes, len(ordered))
    if num_processes > 1:
        yield from _run_in_processes(task, ordered, schedule, num_processes)
        return
    cache = PrefixCache(task)
    for unit in ordered:
        yield unit, fine_tune(cache.task_for(unit.update), unit.update, schedule, unit.seed)


def _run_in_processes(
    task: Task, units: Sequence[Unit], schedule: Schedule, num_processes: int
) -> Generator[tuple[Unit, Outcome], None, None]:
    # Forking would be unsafe: torch's threads do not survive it.
    context = get_context("spawn")
    watched, lifeline = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "task"
        pack(task, path)
        pool = ProcessPoolExecutor(num_processes, context, _start, (path, schedule, watched))
        try:
            futures = {pool.submit(_run, unit): unit for unit in units}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise PockmobileError(
                "a worker process ended: it was killed (out of memory?), or the script that "
                'called this lacks `if __name__ == "__main__":`; start again, what is measured '
                "is kept, or take one process"
            ) from error
        finally:
            lifeline.close()
            pool.shutdown(cancel_futures=True)
            watched.close()


_worker: tuple[PrefixCache, Schedule] | None = None
"""What a worker process works on."""


def _start(path: Path, schedule: Schedule, lifeline: Connection) -> None:
    """Prepares a worker process."""
    global _worker
    # Ctrl-C is sent to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(lifeline, path.parent), daemon=True).start()
    torch.set_num_threads(1)
    # FX makes a bar in each run, whose own lock would be reported as leaked at the end.
    tqdm.set_lock(RLock())
    _worker = (PrefixCache(unpack(path)), schedule)


def _end_with(lifeline: Connection, folder: Path) -> None:
    """Ends this process when the other end is closed, or its process gone."""
    lifeline.poll(None)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _run(unit: Unit) -> Outcome:
    assert _worker is not None
    cache, schedule = _worker
    return fine_tune(cache.task_for(unit.update), unit.update, schedule, unit.seed)
