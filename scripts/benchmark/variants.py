"""The ways to train that `scripts/bench.py` compares, and the messages to their processes."""

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, final

from pockmobile.errors import PockmobileError

Engine: TypeAlias = Literal["ours", "eager", "stock", "onnxruntime", "mnn", "litert"]
Kind: TypeAlias = Literal[
    "ours", "split", "int8", "int4", "stock", "network", "onnxruntime", "mnn", "litert"
]
"""Of a program: `split` is one of ours that starts from latents, `int8` and
`int4` are those whose frozen weights may be held so. `network` describes what a peer's is to be
built from."""
Precision: TypeAlias = Literal["fp32", "int8", "int4"]
Trained: TypeAlias = Literal["plan", "full", "last", "head"]
Part: TypeAlias = tuple[int, int, int] | None
"""The trained channels of a parameter (dimension, start, stop), or None for all."""
_MOST_CHARACTERS: Final = 200


class VariantError(PockmobileError):
    """A variant that cannot be exported, opened or run; the message is the reason."""


@final
@dataclass(frozen=True)
class Variant:
    """One way to train.

    `trains` says what: the plan of the work, everything, the last block with all behind it,
    or the head. `is_compiled` is torch.compile. Of stock ExecuTorch, `lowering` says what its
    export does beside the usual. `is_split` starts each step from latents, as from the second
    epoch on; `frozen_weights` is how these may be held. `without` is a pass that our compiler
    leaves out.
    """

    name: str
    engine: Engine
    trains: Trained
    is_compiled: bool = False
    lowering: Literal["", "xnnpack", "split-addmm"] = ""
    is_split: bool = False
    frozen_weights: Precision = "fp32"
    without: str = ""

    @property
    def has_program(self) -> bool:
        """Whether it runs a program file."""
        return self.engine != "eager"

    @property
    def is_peer(self) -> bool:
        """Whether it may train something else without that being a fault of ours."""
        return self.engine not in ("ours", "eager") or self.is_compiled

    @property
    def may_fail(self) -> bool:
        """Whether it need not be measured: a peer, or ours without a pass."""
        return self.is_peer or bool(self.without)

    @property
    def oracle(self) -> str:
        """The name of the variant of eager PyTorch whose losses it must have; "" if none.

        With weights in int8 or int4 the losses are others, from the first on.
        """
        if self.frozen_weights != "fp32":
            return ""
        return "eager-same" if self.trains == "plan" else f"eager-{self.trains}"

    def plan(self, own: str) -> str:
        """Returns the plan that it trains, where the work's is `own`."""
        return {"plan": own, "full": "full", "last": "last:1", "head": "head"}[self.trains]


_COMMON: Final = (
    Variant("ours", "ours", "plan"),
    Variant("ours-full", "ours", "full"),
    Variant("ours-split", "ours", "plan", is_split=True),
    Variant("ours-int8", "ours", "plan", frozen_weights="int8"),
    Variant("ours-int4", "ours", "plan", frozen_weights="int4"),
    Variant("eager-same", "eager", "plan"),
    Variant("eager-full", "eager", "full"),
    Variant("compile-same", "eager", "plan", is_compiled=True),
    Variant("compile-full", "eager", "full", is_compiled=True),
    Variant("stock-portable", "stock", "full"),
    # Its portable addmm is naive; split into mm and add, the LM's step takes half the time.
    Variant("stock-portable-mm", "stock", "full", lowering="split-addmm"),
    Variant("stock-xnnpack", "stock", "full", lowering="xnnpack"),
)
PASSES: Final = (
    "split-one-hot",
    "scatter-last",
    "flatten-softmax",
    "fold-constants",
    "remove-noops",
    "eliminate-common",
    "fold-scale",
    "mask-from-output",
    "narrow-gradients",
    "gather-log-softmax",
    "sum-rows",
    "fold-trained-scale",
    "decompose-small-images",
    "scale-factors",
    "decompose-large-weights",
    "reorder-for-memory",
    "scale-again",
    "split-batch",
)
"""The passes that can be left out: what they make is a better program, not a right one."""
_WITHOUT: Final = tuple(
    Variant(f"{ours}-without-{name}", "ours", trains, without=name)
    for name in PASSES
    for ours, trains in (("ours", "plan"), ("ours-full", "full"))
)
_PARTS: Final[tuple[Trained, ...]] = ("full", "last", "head")
_PARTLY: Final = tuple(
    Variant(f"{engine}-{part}", engine, part)
    for engine in ("ours", "eager")
    for part in _PARTS[1:]
)
_PEERS: Final = tuple(
    Variant(f"{engine}-{part}", engine, part)
    for engine in ("onnxruntime", "mnn", "litert")
    for part in _PARTS
)
VARIANTS: Final[Mapping[str, Variant]] = {
    variant.name: variant for variant in (*_COMMON, *_PARTLY, *_WITHOUT, *_PEERS)
}
"""All of them, by name."""
COMMON: Final = tuple(variant.name for variant in _COMMON)
"""What `scripts/bench.py` compares, if it is not told."""
WITHOUT: Final = tuple(variant.name for variant in _WITHOUT)
"""A variant of ours for each pass that can be left out."""
BESIDE_PEERS: Final = (
    *("ours", "ours-full", "ours-last", "ours-head"),
    *("eager-same", "eager-full", "eager-last", "eager-head"),
    *(variant.name for variant in _PEERS),
)
"""What `scripts/bench_peers.py` compares, if it is not told."""


@final
@dataclass(frozen=True)
class Order:
    """A file to make, by a process of its own: the batch, or a program for the batch `inputs`.

    `detail` is the plan of a program of ours or of a network, how stock ExecuTorch lowers its
    own, and the file of the network from which a peer's is built. `without` is as a variant's.
    """

    kind: Literal["inputs"] | Kind
    work: str
    batch: int
    path: str
    inputs: str = ""
    detail: str = ""
    without: str = ""

    @property
    def info_path(self) -> Path:
        """Where a program's `ProgramInfo` lies; it is written last."""
        return Path(self.path).with_suffix(".json")


@final
@dataclass(frozen=True)
class Exported:
    """A program: its bytes, what a step plans and needs beside that, and what it trains.

    `tied` pairs of parameters are copies of one, whose gradients are to be added.
    """

    buffer: bytes
    planned_bytes: int | None
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
    planned_bytes: int | None
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


def last_line(log: Path, status: int) -> str:
    """Returns why a process ended: by a signal, or the last line that it left, cut."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name} (memory?)"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:_MOST_CHARACTERS] if lines else f"exit status {status}"
