"""How the keyboard learns: what it keeps, and the schedule of a burst of training."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import numpy as np
import numpy.typing as npt

from pockmobile.artifact.manifest import Manifest, Tensor
from pockmobile.errors import UsageError
from pockmobile.keyboard.tokenizer import START
from pockmobile.keyboard.vocabulary import Vocabulary

Tokens: TypeAlias = tuple[int, ...]
Array: TypeAlias = npt.NDArray[np.int64]

_MASK: Final = 2**64 - 1


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is kept and how it is trained; the defaults are those of the shipped keyboard.

    Attributes:
        num_recent: newest messages kept.
        num_older: older messages kept, a sample of all that there were.
        most_tokens: tokens of a message that are kept, from its start.
        held_out_part: one part in so many of the recent messages, the newest, is not trained.
        least_held_out: tokens that must be held out, or no burst runs.
        num_steps: steps of a burst.
        lr: learning rate of the first step; it falls linearly to 0.
        replay_share: share of a batch that is older messages, 0 to 1.
        margin: how much lower the held-out loss must be for a burst to be kept.
        least_gain: how much lower than that of the shipped model the held-out loss must be, in
            nats, or the model returns to it: who writes like those of whom it was made gains
            little, and what they gain on the newest messages is soon lost on others.
        least_ngram_gain: how much lower it must be with the owner's n-grams beside the model,
            or these have no share in suggestions.
        least_uses: uses that make an unknown word one of the owner's.
        num_candidates: unknown words counted at a time.
        num_states: last good states kept on disk.
        save_every: messages added between two saves of the store; 1 loses none.
        seed: of what is drawn at random.
    """

    num_recent: int = 400
    num_older: int = 1600
    most_tokens: int = 256
    held_out_part: int = 5
    least_held_out: int = 200
    num_steps: int = 20
    lr: float = 0.2
    replay_share: float = 0.5
    margin: float = 0.0
    least_gain: float = 0.15
    least_ngram_gain: float = 0.02
    least_uses: int = 3
    num_candidates: int = 512
    num_states: int = 2
    save_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            UsageError: one of them is too small or too large.
        """
        for name in ("num_older", "num_candidates", "seed"):
            _check(name, getattr(self, name), 0)
        for name in ("num_recent", "most_tokens", "least_held_out", "num_steps"):
            _check(name, getattr(self, name), 1)
        for name in ("least_uses", "num_states", "save_every"):
            _check(name, getattr(self, name), 1)
        _check("held_out_part", self.held_out_part, 2)
        if not 0 <= self.replay_share <= 1:
            raise UsageError(f"replay_share is {self.replay_share}, expected 0 to 1")


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}, expected at least {least}")


@final
class Draws:
    """Whole numbers drawn at random by SplitMix64: the same in every language.

    The series is set by `seed` and `number`; drawing from the series of each number in turn
    needs no state to be kept.
    """

    def __init__(self, seed: int, number: int) -> None:
        """Starts series `number` of a seed."""
        self._state = (seed * 0xD1342543DE82EF95 + number) & _MASK

    def below(self, limit: int) -> int:
        """Returns a number from 0 to `limit - 1`."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return (mixed ^ (mixed >> 31)) % limit

    def order(self, count: int) -> list[int]:
        """Returns the numbers from 0 to `count - 1` in a random order (Fisher and Yates)."""
        numbers = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            numbers[last], numbers[other] = numbers[other], numbers[last]
        return numbers


@final
@dataclass(frozen=True)
class Shape:
    """What a program takes: rows of a batch, tokens of a row, and its special tokens.

    `start` begins a message; a label of `ignored` counts for nothing.
    """

    batch: int
    length: int
    start: int
    ignored: int

    @classmethod
    def of(cls, manifest: Manifest, vocabulary: Vocabulary) -> "Shape":
        """Returns the shape of a program that predicts the next token of a vocabulary.

        Raises:
            UsageError: it does not; the message says in what.
        """
        if manifest.loss != "next_token":
            raise UsageError(
                f"the program's loss is {manifest.loss}, expected next_token; export a "
                "language model with it"
            )
        train = manifest.methods["train_step"]
        inputs, targets = train.inputs_of("input"), train.inputs_of("target")
        if len(inputs) != 1 or inputs[0].dtype != "int64" or len(inputs[0].shape) != 2:
            raise UsageError(
                f"the program takes {_listed(inputs)}, expected one input int64 [rows, tokens];"
                " export a model that takes tokens alone"
            )
        batch, length = inputs[0].shape
        outputs = manifest.methods["predict"].outputs_of("output")
        if len(outputs) != 1 or outputs[0].shape[1:] != (length, vocabulary.num_tokens):
            raise UsageError(
                f"the program predicts {_listed(outputs)}, expected [rows, {length}, "
                f"{vocabulary.num_tokens}]; give the vocabulary that the model was trained with"
            )
        assert isinstance(targets[0].ignored, int)
        return cls(batch, length, vocabulary.id(START), targets[0].ignored)


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors)


@final
@dataclass(frozen=True)
class Rows:
    """Rows of text: what the program reads and what it is to predict, int64 [rows, length]."""

    inputs: Array
    targets: Array

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.inputs)

    def take(self, numbers: Sequence[int]) -> "Rows":
        """Returns these rows."""
        return Rows(self.inputs[numbers], self.targets[numbers])


def stream(messages: Iterable[Tokens], start: int) -> list[int]:
    """Returns messages as one text, each behind the token `start`."""
    return [token for message in messages for token in (start, *message)]


def cut(text: Sequence[int], shape: Shape) -> Rows:
    """Cuts a text in rows.

    A row begins with the last token of the row before, because nothing predicts a row's first
    token: so each token but the text's first is predicted once. The last row is filled up
    with `shape.start`, and `shape.ignored` as the label.
    """
    begins = range(0, max(0, len(text) - 1), shape.length - 1)
    inputs = np.full((len(begins), shape.length), shape.start, np.int64)
    targets = np.full((len(begins), shape.length), shape.ignored, np.int64)
    for row, begin in enumerate(begins):
        part = text[begin : begin + shape.length]
        inputs[row, : len(part)] = part
        targets[row, : len(part)] = part
    return Rows(inputs, targets)


def rates(settings: Settings) -> list[float]:
    """Returns the learning rate of each step: the first is `lr`, one more would be 0."""
    steps = settings.num_steps
    return [settings.lr * (steps - step) / steps for step in range(steps)]


def batches(recent: Rows, older: Rows, size: int, share: float, draws: Draws) -> Iterator[Rows]:
    """Yields batches of `size` rows without end, `share` of each from the older ones.

    Each source is gone through in a random order, then again in another. Where one source is
    empty, the other fills the batch.
    """
    num_older = round(size * share) if len(older) else 0
    if not len(recent):
        num_older = size
    numbers, older_numbers = _endless(len(recent), draws), _endless(len(older), draws)
    while True:
        new = recent.take([next(numbers) for _ in range(size - num_older)])
        old = older.take([next(older_numbers) for _ in range(num_older)])
        yield Rows(
            np.concatenate([new.inputs, old.inputs]),
            np.concatenate([new.targets, old.targets]),
        )


def _endless(count: int, draws: Draws) -> Iterator[int]:
    while True:
        yield from draws.order(count)
