"""Every error that pockmobile raises on purpose; `exit_status` is what the commands return."""

from collections.abc import Iterable
from difflib import get_close_matches


class PockmobileError(Exception):
    """Base class; its message is one line: what was found, what was expected, what to do."""

    exit_status = 1


class UsageError(PockmobileError):
    """The user's mistake: arguments, files, models."""

    exit_status = 2


class ModelFileError(UsageError):
    """A model or data file that cannot be read, or may not be read safely."""


class ModelError(UsageError):
    """A model whose forward pass or loss fails on the example batch."""


class PlanError(UsageError):
    """An update plan that does not fit the model."""


class UnsupportedOperatorError(PockmobileError):
    """An operator that has no gradient, or that the runtime does not have."""


class MissingLibraryError(PockmobileError):
    """A library of a vendor that a target needs, and that is not there or does not work."""


class ArtifactError(PockmobileError):
    """A `.pte` that is damaged, or that pockmobile did not write."""


class CheckpointError(PockmobileError):
    """A checkpoint that is damaged, or that belongs to another program."""


class InputError(PockmobileError, ValueError):
    """A tensor handed to a session that the program was not exported for."""


class NonFiniteError(PockmobileError, ArithmeticError):
    """A training step whose loss or state is not finite; the state was left as it was."""


class PockmobileWarning(UserWarning):
    """What a program does otherwise than the model that it was made of; commands show it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that lists the known names nearest to `name`, for error messages."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
    return f"did you mean {', '.join(close)}?" if close else "there are none"
