"""What was measured, one line for each unit, written as it comes: a file to resume from."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, final

import torch
from torch import Tensor

from pockmobile.errors import UsageError
from pockmobile.plan import Slice
from pockmobile.sensitivity.schedule import Schedule
from pockmobile.sensitivity.task import Task
from pockmobile.sensitivity.training import Outcome

_FORMAT: Final = 1


@final
@dataclass(frozen=True)
class Unit:
    """One fine-tuning: a plan (its name is for people) under a seed."""

    plan: str
    update: Mapping[str, Slice | None]
    seed: int

    @property
    def key(self) -> str:
        """What makes it the same unit: what is trained, and the seed."""
        update = {name: asdict(part) if part else None for name, part in self.update.items()}
        return json.dumps({"update": update, "seed": self.seed}, sort_keys=True)


@final
class Store:
    """The outcomes by unit; those that are added are on the disk when `add` returns."""

    def __init__(self, done: dict[str, Outcome], file: IO[str] | None) -> None:
        """Starts from what is done; without a file it forgets."""
        self._done, self._file = done, file

    def __contains__(self, unit: Unit) -> bool:
        """Whether the unit was measured."""
        return unit.key in self._done

    def __getitem__(self, unit: Unit) -> Outcome:
        """Returns what was measured."""
        return self._done[unit.key]

    def add(self, unit: Unit, outcome: Outcome) -> None:
        """Keeps what was measured."""
        self._done[unit.key] = outcome
        if self._file is not None:
            line = {"plan": unit.plan, **json.loads(unit.key), **asdict(outcome)}
            _write(self._file, line)


@contextmanager
def open_store(path: Path | None, task: Task, schedule: Schedule) -> Iterator[Store]:
    """Opens the store of a task and schedule, or starts a new one; None keeps no file.

    A last line that an interruption left unfinished is cut off.

    Raises:
        UsageError: the file cannot be written, or is that of other weights, data, loss or
            schedule, or no store at all.
    """
    if path is None:
        yield Store({}, None)
        return
    header = {"pockmobile": "sensitivity", "format": _FORMAT, "analysis": _hash(task, schedule)}
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    with file:
        yield Store(_read(path, file, header), file)


def _read(path: Path, file: IO[str], header: Mapping[str, Any]) -> dict[str, Outcome]:
    """Returns the outcomes of a file, which is left to end with a whole line."""
    file.seek(0)
    try:
        lines = file.read().splitlines(keepends=True)
    except UnicodeDecodeError:
        lines = ["\n"]
    expected = json.dumps(header) + "\n"
    if not lines or (lines[0] != expected and expected.startswith(lines[0])):
        file.truncate(0)
        _write(file, header)
        return {}
    if lines[0] != expected:
        raise UsageError(
            f"{path} {_difference(lines[0])}; delete it to start anew, or name another file"
        )
    if not lines[-1].endswith("\n"):
        file.truncate(sum(len(line.encode()) for line in lines[:-1]))
        lines.pop()
    try:
        return dict(_outcome(json.loads(line)) for line in lines[1:])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({error}); delete it to start anew, or name another file"
        ) from error


def _difference(line: str) -> str:
    try:
        is_store = json.loads(line)["pockmobile"] == "sensitivity"
    except (ValueError, KeyError, TypeError):
        is_store = False
    if is_store:
        return "holds what was measured with other weights, data, loss or schedule"
    return "is no record of an analysis"


def _outcome(line: Mapping[str, Any]) -> tuple[str, Outcome]:
    key = json.dumps({"update": line["update"], "seed": line["seed"]}, sort_keys=True)
    return key, Outcome(float(line["metric"]), float(line["loss"]))


def _write(file: IO[str], line: Mapping[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _hash(task: Task, schedule: Schedule) -> str:
    """Returns the SHA-256 of all that decides what a unit gives, but the code."""
    forward = task.forward
    optimizer = dict(schedule.optimizer.constants())
    numbers = [schedule.num_steps, schedule.lr, schedule.clip_norm, forward.batch_size]
    rest = [leaf for leaf in forward.leaves if not isinstance(leaf, Tensor)]
    texts = [str(forward.graph.graph), task.loss.name, repr(optimizer), repr([*numbers, *rest])]
    digest = hashlib.sha256("\n".join(texts).encode())
    named = [*sorted(forward.parameters.items()), *sorted(forward.buffers.items())]
    for data in (task.train, task.eval):
        named += [*data.inputs.items(), *(("target", target) for target in data.targets)]
    for name, value in named:
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
