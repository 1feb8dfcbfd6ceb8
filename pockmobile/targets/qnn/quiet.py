"""Keeps what native libraries print from the user, for the message of an error."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

_ERROR: Final = "[ERROR]"


@contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Catches what is printed, in Python or beneath; yields what returns its errors, a line."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        kept = [(stream, os.dup(stream)) for stream in (1, 2)]
        for stream, _ in kept:
            os.dup2(log.fileno(), stream)
        try:
            yield lambda: _errors(log)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in kept:
                os.dup2(copy, stream)
                os.close(copy)


def _errors(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    found = [line.partition("]: ")[2].strip() for line in lines if _ERROR in line]
    return "; ".join(dict.fromkeys(filter(None, found)))
