"""Programs for Core ML: what is compiled, and how far they may be from eager PyTorch.

Shared by `tests/targets/test_coreml_parity.py` (a selection) and `scripts/check_coreml.py`
(the whole product).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.models import keyboard_lm
from pockmobile.targets.coreml.target import Precision
from scripts.benchmark.encoder import Encoder
from tests.eager import Eager
from tests.interpreted import InterpretedSession
from tests.parity_cases import (
    NUM_STEPS,
    OPTIMIZERS,
    SUBJECTS,
    Subject,
    follow,
    model_of,
    plan_of,
)

_KEYBOARD: Final = Subject(
    keyboard_lm, lambda generator: torch.randint(10_000, (2, 16), generator=generator),
    (2, 16), 10_000,
    sliced=(("blocks.1.mlp.0.weight", 1, 16, 64), ("blocks.0.mlp.2.weight", 0, 0, 32)),
)  # fmt: skip
_ENCODER: Final = Subject(
    lambda: Encoder(
        num_labels=5, num_tokens=1000, context=16, width=64, num_blocks=4, num_heads=4
    ),
    lambda generator: torch.randint(1000, (4, 16), generator=generator), (4,), 5,
    sparse="sparse:3:2",
    sliced=(("blocks.3.mlp.0.weight", 1, 8, 40), ("blocks.2.mlp.2.weight", 0, 0, 16)),
)  # fmt: skip
COREML_SUBJECTS: Final[Mapping[str, Subject]] = {
    "mlp": SUBJECTS["mlp"],
    "mobilenet_v2": SUBJECTS["mobilenet_v2"],
    "resnet18": SUBJECTS["resnet18"],
    "keyboard": _KEYBOARD,
    "encoder": _ENCODER,
    "llama": SUBJECTS["llama"],
}
COREML_PLANS: Final = ("full", "sparse", "slices")
LIMITS: Final[Mapping[Precision, float]] = {"fp32": 1e-4, "fp16": 1e-2}
"""How far a loss or a state may be from eager PyTorch's, absolute and relative."""
_LEAST_VALUES: Final = 8
"""Fewer equal numbers in a row may be there by chance."""


@dataclass(frozen=True)
class CoreMLCase:
    """One cell of the product."""

    subject: str
    plan: str
    precision: Precision
    optimizer: str = "sgd"

    def __str__(self) -> str:
        return f"{self.subject}-{self.plan}-{self.precision}-{self.optimizer}"


@dataclass(frozen=True)
class Outcome:
    """What a case showed.

    `seconds` of one core's time were needed to compile it; `num_outside` operators are outside
    the delegates; `num_baked` trained tensors lie in their bytes;
    `difference` is the worst |ours - eager| / (1 + |eager|).
    """

    seconds: float
    num_partitions: int
    num_outside: int
    num_baked: int
    num_bytes: int
    difference: float


ALL_COREML: Final = tuple(
    CoreMLCase(subject, plan, precision)
    for subject in COREML_SUBJECTS
    for plan in COREML_PLANS
    for precision in LIMITS
)


@cache
def coreml_model(subject: str) -> nn.Module:
    """Returns the model of a subject."""
    if subject in SUBJECTS:
        return model_of(subject)
    torch.manual_seed(0)
    return COREML_SUBJECTS[subject].make().eval()


def compile_coreml(case: CoreMLCase) -> pockmobile.Program:
    """Compiles the program of a case."""
    subject = COREML_SUBJECTS[case.subject]
    return pockmobile.compile(
        coreml_model(case.subject),
        (subject.inputs(torch.Generator().manual_seed(1)),),
        plan=plan_of(subject, case.plan),
        optimizer=OPTIMIZERS[case.optimizer],
        target=pockmobile.CoreML(precision=case.precision),
    )


def difference(case: CoreMLCase, session: InterpretedSession, num_steps: int) -> float:
    """Trains beside eager PyTorch and returns the worst difference."""
    program, subject = session.source, COREML_SUBJECTS[case.subject]
    eager = Eager(coreml_model(case.subject), program, OPTIMIZERS[case.optimizer])
    return follow(session, eager, subject, case.optimizer, num_steps, (1.0, 1.0))


def check(case: CoreMLCase, num_steps: int = NUM_STEPS) -> Outcome:
    """Compiles, trains and measures a case."""
    start = time.process_time()
    program = compile_coreml(case)
    seconds = time.process_time() - start
    session = InterpretedSession(program)
    methods = program.manifest.methods.values()
    trained = list(session.state.values())[: len(session.parameters)]
    return Outcome(
        seconds,
        max(method.num_partitions for method in methods),
        sum(item.count for method in methods for item in method.outside),
        len(baked(session, trained)),
        len(program.buffer),
        difference(case, session, num_steps),
    )


def baked(session: InterpretedSession, tensors: list[Tensor]) -> list[Tensor]:
    """Returns the tensors whose values lie in a delegate's bytes, as they are or turned."""
    blobs = [session.program.blob(name) for name in session.manifest.methods]
    return [
        tensor
        for tensor in tensors
        if tensor.unique().numel() >= _LEAST_VALUES
        and any(form in blob for form in _forms(tensor) for blob in blobs)
    ]


def _forms(tensor: Tensor) -> list[bytes]:
    """Returns the bytes of a tensor's first row and first column, in either precision."""
    table = tensor.detach().reshape(tensor.shape[0], -1).numpy()
    lines = [line for line in (table[0], table[:, 0]) if len(np.unique(line)) >= _LEAST_VALUES]
    kinds = (np.float32, np.float16)
    return [np.ascontiguousarray(line, kind).tobytes() for line in lines for kind in kinds]
