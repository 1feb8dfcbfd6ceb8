"""Trains a program of ours for `scripts/bench.py`: nothing but `pockmobile.Session`."""

from typing import final

from pockmobile.session import Session
from scripts.benchmark.inputs import read_batch
from scripts.benchmark.variants import Job


def load_late() -> None:
    """Does nothing: a session has imported all that it needs."""


def open_engine(job: Job) -> "_Ours":
    """Returns the trainer."""
    return _Ours(job)


@final
class _Ours:
    def __init__(self, job: Job) -> None:
        assert job.program is not None
        self._inputs, self._targets = read_batch(job.inputs)
        self._session = Session(job.program, threads=job.threads)
        is_split = self._session.manifest.is_split
        self._given = self._session.encode(self._inputs) if is_split else self._inputs

    def step(self, lr: float) -> float:
        return self._session.step(self._given, self._targets, lr=lr)
