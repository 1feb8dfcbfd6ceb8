"""Puts the methods of a program into one model package, in which a weight is stored once."""

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from executorch.exir._serialize._named_data_store import NamedDataStore

from pockmobile.targets.base import LoweredMethod
from pockmobile.targets.coreml.package import join_packages
from pockmobile.targets.delegate import only_blob, replace_blob

_REFERENCE: Final = b"CMJR"
"""What tells the runtime that a delegate's bytes only name a package and its function."""


def share(methods: Mapping[str, LoweredMethod]) -> Mapping[str, LoweredMethod]:
    """Returns the methods, those of one delegate each as functions of one package.

    The package lies in the program once, and the delegates refer to it.
    """
    found = {name: only_blob(lowered) for name, lowered in methods.items()}
    packages = {name: blob for name, blob in found.items() if blob is not None}
    if len(packages) < 2:
        return methods
    joined = join_packages(packages)
    key = f"coreml_{hashlib.sha256(joined).hexdigest()}"
    store = NamedDataStore()
    store.add_named_data(key, joined)
    data = store.get_named_data_store_output()
    return {
        name: replace_blob(lowered, _reference(key, name), data)
        if name in packages
        else lowered
        for name, lowered in methods.items()
    }


def _reference(key: str, function: str) -> bytes:
    content = {"version": 1, "key": key, "functionName": function}
    return _REFERENCE + json.dumps(content).encode()
