"""coremltools, imported where it is first needed, and without its warnings."""

import contextlib
import io
import logging
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from pockmobile.errors import UsageError


def import_coremltools() -> ModuleType:
    """Returns coremltools; the package takes seconds to import.

    Raises:
        UsageError: it is missing.
    """
    try:
        with quiet():
            module = import_module("coremltools")
    except ImportError as error:
        raise UsageError(
            f"target coreml needs coremltools 9.0, which is missing ({error}); it comes with "
            "executorch on x86-64 Linux and on macOS: export there, or choose another target"
        ) from error
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back warnings of versions and of a Mac's libraries, and bars of progress."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
