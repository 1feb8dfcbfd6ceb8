"""The messages that the keyboard learns from, as token numbers: bounded, and each only once."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from pockmobile.artifact.files import atomic_write
from pockmobile.errors import ArtifactError
from pockmobile.keyboard.settings import Draws, Settings, Tokens

_FORMAT: Final = 1


@final
@dataclass(frozen=True)
class Example:
    """A message: its tokens, how often it was typed, and when first (seconds since 1970)."""

    tokens: Tokens
    count: int
    at: int


@final
@dataclass(frozen=True)
class Examples:
    """What a store holds, to be written: recent messages oldest first, then the sample."""

    num_typed: int
    num_aged: int
    last_at: int
    recent: tuple[Example, ...] = ()
    older: tuple[Example, ...] = ()


@final
class Store:
    """The newest messages, and a sample of those before them.

    A message that leaves the recent ones enters the sample by Vitter's algorithm R, so each
    that ever left has the same chance to be in it. The newest part of the recent messages is
    held out; it is trained only when newer messages have taken its place. A message typed
    again is counted where it stands: it does not move from the trained part to the held-out.
    """

    def __init__(self, settings: Settings, examples: Examples | None = None) -> None:
        """Starts from what was stored; sizes that shrank since let the oldest go."""
        found = examples or Examples(num_typed=0, num_aged=0, last_at=0)
        self._settings = settings
        self._num_typed, self._num_aged = found.num_typed, found.num_aged
        self._last_at = found.last_at
        self._recent = {example.tokens: example for example in found.recent}
        self._older = list(found.older[: settings.num_older])
        self._make_room()

    def __len__(self) -> int:
        """Returns the number of messages kept, each counted once."""
        return len(self._recent) + len(self._older)

    @property
    def num_typed(self) -> int:
        """Messages ever added, repeated ones too."""
        return self._num_typed

    @property
    def recent(self) -> list[Tokens]:
        """The newest messages, oldest first."""
        return list(self._recent)

    @property
    def older(self) -> list[Tokens]:
        """The sample of the messages before."""
        return [example.tokens for example in self._older]

    @property
    def held_out(self) -> list[Tokens]:
        """The newest part of the recent messages: never trained, oldest first."""
        return self.recent[self._first_held_out :]

    @property
    def trained(self) -> list[Tokens]:
        """The recent messages that are not held out, oldest first."""
        return self.recent[: self._first_held_out]

    @property
    def examples(self) -> Examples:
        """All that is held, to be written."""
        return Examples(
            num_typed=self._num_typed,
            num_aged=self._num_aged,
            last_at=self._last_at,
            recent=tuple(self._recent.values()),
            older=tuple(self._older),
        )

    def add(self, tokens: Sequence[int], at: float) -> None:
        """Adds a message; a clock that went back counts as one that stands still."""
        kept = tuple(tokens)
        if not kept:
            return
        self._num_typed += 1
        self._last_at = max(self._last_at, int(at))
        if not self._count_again(kept):
            self._recent[kept] = Example(kept, 1, self._last_at)
            self._make_room()

    def remove(self, token: int) -> int:
        """Removes all messages that hold a token; returns how many."""
        before = len(self)
        self._recent = {key: value for key, value in self._recent.items() if token not in key}
        self._older = [example for example in self._older if token not in example.tokens]
        return before - len(self)

    @property
    def _first_held_out(self) -> int:
        return len(self._recent) - len(self._recent) // self._settings.held_out_part

    def _count_again(self, tokens: Tokens) -> bool:
        if tokens in self._recent:
            self._recent[tokens] = _once_more(self._recent[tokens])
            return True
        for place, example in enumerate(self._older):
            if example.tokens == tokens:
                self._older[place] = _once_more(example)
                return True
        return False

    def _make_room(self) -> None:
        while len(self._recent) > self._settings.num_recent:
            oldest = next(iter(self._recent))
            self._sample(self._recent.pop(oldest))

    def _sample(self, example: Example) -> None:
        """Algorithm R; a place that was freed by `remove` is filled first."""
        self._num_aged += 1
        if len(self._older) < self._settings.num_older:
            self._older.append(example)
            return
        place = Draws(self._settings.seed, self._num_aged).below(self._num_aged)
        if place < len(self._older):
            self._older[place] = example


def _once_more(example: Example) -> Example:
    return replace(example, count=example.count + 1)


def write_sealed(path: Path, value: object) -> None:
    """Writes a JSON value with its SHA-256, all or nothing: two lines, each of them JSON.

    Raises:
        OSError: the file cannot be written; a former one is as it was.
    """
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    seal = {"pockmobile_store": _FORMAT, "sha256": hashlib.sha256(body).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(seal).encode() + b"\n", body + b"\n")


def read_sealed(path: str | os.PathLike[str]) -> object | None:
    """Returns the value that `write_sealed` wrote, or None where there is no file.

    Raises:
        ArtifactError: the file cannot be read, is damaged, or of another format.
    """
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    head, _, rest = data.partition(b"\n")
    try:
        seal = json.loads(head)
        is_whole = seal["sha256"] == hashlib.sha256(rest.removesuffix(b"\n")).hexdigest()
        found = seal["pockmobile_store"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: its first line is no seal") from error
    if found != _FORMAT:
        raise ArtifactError(f"{path} has format {found!r}, this pockmobile reads {_FORMAT}")
    if not is_whole:
        raise ArtifactError(f"{path} is damaged: its contents do not match their SHA-256")
    value: object = json.loads(rest)
    return value
