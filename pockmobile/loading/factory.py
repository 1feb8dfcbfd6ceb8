"""`package.module:name` on the command line -> the callable that it names."""

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pockmobile.errors import UsageError, nearest


def parse_factory(text: str) -> Callable[..., Any]:
    """Returns the callable that `package.module:name` names; `name` may be dotted.

    Modules of the current directory can be named.

    Raises:
        UsageError: of another form, no such module or name, or not callable.
    """
    module_name, colon, name = text.partition(":")
    if not (colon and module_name and name):
        raise UsageError(f"{text!r} names no function: expected package.module:function")
    found: Any = _import(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise UsageError(f"{module_name} has no {name!r}: {nearest(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{text} is a {type(found).__name__}, expected a function or class")
    return found  # type: ignore[no-any-return]


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"cannot import {name}: no module named {error.name!r}; install it, or run where "
            f"it can be imported"
        ) from error
