"""Imports modules of `onnxruntime.training` without torch, which its `__init__` imports.

That is for training PyTorch modules. What trains from artifacts, as on a phone, needs none.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import onnxruntime

_PACKAGE: Final = "onnxruntime.training"


def training_module(name: str) -> Any:
    """Returns a module of the package, whose `__init__` is not run."""
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
    sys.modules.setdefault(_PACKAGE, package)
    return import_module(f"{_PACKAGE}.{name}")
