"""What `fixture.json` of the keyboard holds, as records; apps have the same ones.

`docs/keyboard_fixture.md` says it for people.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Sizes:
    """What the program takes."""

    num_tokens: int
    batch: int
    length: int
    start: int
    ignored: int


@final
@dataclass(frozen=True)
class Tolerance:
    """How far an app on another processor may be from Python."""

    loss_relative: float = 1e-4
    logit_absolute: float = 1e-3
    state_absolute: float = 1e-4


@final
@dataclass(frozen=True)
class Batch:
    """Rows of text, not yet filled up, and their labels: int64 [1 to batch, length]."""

    name: str
    inputs: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]


@final
@dataclass(frozen=True)
class Step:
    """A training step, in order: the number of the batch, and the loss before the update."""

    batch: int
    lr: float
    loss: float


@final
@dataclass(frozen=True)
class Measured:
    """What `evaluate` tells of the text held out."""

    loss: float
    accuracy: float
    num_correct: int
    num_counted: int


@final
@dataclass(frozen=True)
class Prediction:
    """The three likeliest words, best first, and logits of them and of `other_tokens`."""

    tokens: tuple[int, ...]
    words: tuple[str, ...]
    logits: tuple[float, ...]
    other_logits: tuple[float, ...]


@final
@dataclass(frozen=True)
class Context:
    """A text to go on from, and the row of which place `position` predicts what follows."""

    text: str
    row: tuple[int, ...]
    position: int
    before: Prediction
    after: Prediction


@final
@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, how to damage it first, and what restoring it must do.

    It is cut to `truncate_to` bytes, or its byte at `flip_at` is xored with `flip_mask`.
    """

    name: str
    file: str
    truncate_to: int | None = None
    flip_at: int | None = None
    flip_mask: int | None = None
    verdict: str = ""
    python: str = ""

    def damage(self, data: bytes) -> bytes:
        """Returns the file's bytes, cut and changed as the case says."""
        changed = bytearray(data[: self.truncate_to])
        if self.flip_at is not None and self.flip_mask is not None:
            changed[self.flip_at] ^= self.flip_mask
        return bytes(changed)


@final
@dataclass(frozen=True)
class Fixture:
    """All of `fixture.json`, in its order."""

    format: int
    program: str
    program_sha256: str
    manifest: str
    vocabulary_sha256: str
    sizes: Sizes
    tolerance: Tolerance
    batches: tuple[Batch, ...]
    steps: tuple[Step, ...]
    held_out: Batch
    before: Measured
    after: Measured
    other_tokens: tuple[int, ...]
    contexts: tuple[Context, ...]
    num_steps: int
    metadata: Mapping[str, str]
    checkpoints: tuple[Checkpoint, ...]


def json_lines(value: object, indent: str = "") -> list[str]:
    """Returns JSON in which a row of numbers or words stands on one line."""
    inner = indent + " "
    if isinstance(value, dict):
        parts = [(f"{json.dumps(key)}: ", item) for key, item in value.items()]
        brackets = "{}"
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        parts, brackets = [("", item) for item in value], "[]"
    else:
        return [indent + json.dumps(value)]
    lines = [indent + brackets[0]]
    for number, (key, item) in enumerate(parts, 1):
        found = json_lines(item, inner)
        found[0] = inner + key + found[0].removeprefix(inner)
        found[-1] += "," if number < len(parts) else ""
        lines += found
    return [*lines, indent + brackets[1]]
