"""pockmobile compiles PyTorch models into programs that train on the phone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pockmobile.compiler import Program, compile
    from pockmobile.optim import SGD, AdamW, Lion, Momentum
    from pockmobile.plan import Slice, UpdatePlan
    from pockmobile.planner import find_plan
    from pockmobile.search import Budget
    from pockmobile.session import Session
    from pockmobile.targets.coreml import CoreML
    from pockmobile.targets.qnn import Qnn

_HOMES: Final = {
    "AdamW": "pockmobile.optim",
    "Budget": "pockmobile.search",
    "CoreML": "pockmobile.targets.coreml",
    "Lion": "pockmobile.optim",
    "Momentum": "pockmobile.optim",
    "Program": "pockmobile.compiler",
    "Qnn": "pockmobile.targets.qnn",
    "SGD": "pockmobile.optim",
    "Session": "pockmobile.session",
    "Slice": "pockmobile.plan",
    "UpdatePlan": "pockmobile.plan",
    "compile": "pockmobile.compiler",
    "find_plan": "pockmobile.planner",
}

__all__ = [
    "SGD",
    "AdamW",
    "Budget",
    "CoreML",
    "Lion",
    "Momentum",
    "Program",
    "Qnn",
    "Session",
    "Slice",
    "UpdatePlan",
    "compile",
    "find_plan",
]


def __getattr__(name: str) -> Any:
    # Loaded when first used: a session needs no compiler, and `--help` needs no torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
