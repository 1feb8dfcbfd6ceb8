"""The ways to train that `scripts/bench.py` compares, and the messages to their processes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias, final

from pockmobile.errors import PockmobileError

Engine: TypeAlias = Literal["ours", "eager", "stock"]
Kind: TypeAlias = Literal["ours", "split", "stock"]
"""Of a program: `split` is one of ours that starts from latents."""
Part: TypeAlias = tuple[int, int, int] | None
"""The trained channels of a parameter (dimension, start, stop), or None for all."""


class VariantError(PockmobileError):
    """A variant that cannot be exported, opened or run; the message is the reason."""


@final
@dataclass(frozen=True)
class Variant:
    """One way to train.

    `trains` says what: the plan of the work, or everything. `is_compiled` is torch.compile.
    Of stock ExecuTorch, `lowering` says what its export does beside the usual. `is_split`
    starts each step from latents, as from the second epoch on.
    """

    name: str
    engine: Engine
    trains: Literal["plan", "full"]
    is_compiled: bool = False
    lowering: Literal["", "xnnpack", "split-addmm"] = ""
    is_split: bool = False

    @property
    def has_program(self) -> bool:
        """Whether it runs a program file."""
        return self.engine != "eager"

    @property
    def is_peer(self) -> bool:
        """Whether it may fail or train badly without that being a fault of ours."""
        return self.engine == "stock" or self.is_compiled


VARIANTS: Final[Mapping[str, Variant]] = {
    variant.name: variant
    for variant in (
        Variant("ours", "ours", "plan"),
        Variant("ours-full", "ours", "full"),
        Variant("ours-split", "ours", "plan", is_split=True),
        Variant("eager-same", "eager", "plan"),
        Variant("eager-full", "eager", "full"),
        Variant("compile-same", "eager", "plan", is_compiled=True),
        Variant("compile-full", "eager", "full", is_compiled=True),
        Variant("stock-portable", "stock", "full"),
        # Its portable addmm is naive; split into mm and add, the LM's step takes half the time.
        Variant("stock-portable-mm", "stock", "full", lowering="split-addmm"),
        Variant("stock-xnnpack", "stock", "full", lowering="xnnpack"),
    )
}


@final
@dataclass(frozen=True)
class Exported:
    """A program: its bytes, what a step plans and needs beside that, and what it trains.

    `tied` pairs of parameters are copies of one, whose gradients are to be added.
    """

    buffer: bytes
    planned_bytes: int
    workspace_bytes: int | None
    parts: Mapping[str, Part]
    tied: Sequence[tuple[str, str]] = ()


@final
@dataclass(frozen=True, kw_only=True)
class ProgramInfo:
    """What an export tells beside its program file, as `Exported` does.

    `seconds` is the export's time after its imports, `peak_bytes` its process's memory.
    """

    seconds: float
    peak_bytes: int
    planned_bytes: int
    workspace_bytes: int | None
    parts: Mapping[str, Part]
    tied: Sequence[tuple[str, str]] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker process is to measure; `parts` None trains everything."""

    engine: Engine
    work: str
    inputs: str
    threads: int
    program: str | None = None
    parts: Mapping[str, Part] | None = None
    tied: Sequence[tuple[str, str]] = ()
    is_compiled: bool = False


@final
@dataclass(frozen=True)
class Command:
    """What a worker does next: `num_steps` steps at `lr`, or none at the end."""

    action: Literal["step", "end"]
    num_steps: int = 0
    lr: float = 0.0


@final
@dataclass(frozen=True)
class Steps:
    """What steps took and gave: seconds of each, user CPU seconds of all, loss before each."""

    seconds: Sequence[float]
    user_seconds: float
    losses: Sequence[float] = field(repr=False)


@final
@dataclass(frozen=True)
class Memory:
    """Resident bytes of a worker after its imports, and at most since then."""

    baseline_bytes: int
    peak_bytes: int


def to_line(message: Any) -> str:
    """Returns a message as one line of JSON."""
    return json.dumps(asdict(message)) + "\n"
