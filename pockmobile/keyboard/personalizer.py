"""The loop that makes the keyboard its owner's: keep, train, compare, keep or roll back."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from pockmobile.artifact.codec import decode, encode
from pockmobile.errors import ArtifactError, CheckpointError, InputError, NonFiniteError
from pockmobile.keyboard.gate import Burst, History, Outcome, decide, held_out_loss
from pockmobile.keyboard.learned import Learned
from pockmobile.keyboard.ngrams import Ngrams
from pockmobile.keyboard.own_words import OwnWords, Words, typed_form
from pockmobile.keyboard.predictor import Predictor
from pockmobile.keyboard.settings import (
    Draws,
    Rows,
    Settings,
    Shape,
    Tokens,
    batches,
    cut,
    rates,
    stream,
)
from pockmobile.keyboard.states import States
from pockmobile.keyboard.store import Examples, Store, read_sealed, write_sealed
from pockmobile.keyboard.tokenizer import UNKNOWN, tokenize
from pockmobile.keyboard.vocabulary import FIRST_OWN, Vocabulary
from pockmobile.session import Session

STORE_NAME: Final = "examples.jsonl"
_MOST_NOTICES: Final = 20
_MOST_SECONDS: Final = 2**53


@final
@dataclass(frozen=True)
class _Record:
    """What the file of the store holds; `share` is that of the n-grams."""

    vocabulary: str
    examples: Examples
    words: Words
    history: History
    share: float


@final
class Personalizer:
    """Learns from what its owner types, and suggests the next word.

    Messages are kept as token numbers, never as text; the owner's own words are the only words
    written down. All files are in one folder, which one object of one process has to itself:
    several processes or threads are not supported. What goes wrong with files never stops
    predictions: it is told in `notices`.
    """

    def __init__(
        self,
        program: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        *,
        vocabulary: Vocabulary | None = None,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens what was learnt in a folder, or starts with the shipped model.

        Args:
            program: a `.pte` whose loss is next_token.
            folder: where all is kept; it need not exist.
            vocabulary: of the program; by default the shipped one.
            settings: what is kept, and the schedule.
            clock: returns seconds since 1970.

        Raises:
            ArtifactError: the program is missing, damaged, or not written by pockmobile.
            UsageError: the program is no next-word model of this vocabulary.
        """
        self._vocabulary = vocabulary or Vocabulary.load()
        self._settings = settings or Settings()
        self._clock = clock
        self._session = Session(program)
        self._shape = Shape.of(self._session.manifest, self._vocabulary)
        self._predictor = Predictor(self._session, self._shape, self._vocabulary)
        self._ngrams: Ngrams | None = None
        self._folder = Path(folder)
        self._states = States(self._folder, most=self._settings.num_states)
        self._notices: list[str] = []
        self._remove_temporary()
        record = self._read_store()
        self._store = Store(self._settings, record.examples if record else None)
        self._words = OwnWords(self._settings, record.words if record else None)
        self._history = record.history if record else History()
        self._predictor.share = record.share if record else 0.0
        self._unsaved_state: int | None = None
        self._num_unsaved = 0
        self._restore()

    @property
    def notices(self) -> tuple[str, ...]:
        """What went wrong with files since this object was made, one line each."""
        return tuple(self._notices)

    @property
    def session(self) -> Session:
        """The session that trains; do not step it from outside."""
        return self._session

    @property
    def predictor(self) -> Predictor:
        """What suggestions are taken from."""
        return self._predictor

    @property
    def ngrams(self) -> Ngrams:
        """The n-grams of the messages kept."""
        if self._ngrams is None:
            self._ngrams = self._count([*self._store.older, *self._store.recent])
        return self._ngrams

    def encode(self, text: str) -> list[int]:
        """Returns a text as token numbers, with the slots of the owner's words."""
        return self._vocabulary.encode(tokenize(text), self._words.slots)

    def add(self, text: str, at: float | None = None) -> None:
        """Learns of a message that was typed, `at` seconds since 1970 (by default now).

        Raises:
            InputError: `at` is no time.
        """
        moment = self._clock() if at is None else at
        if not abs(moment) < _MOST_SECONDS:
            raise InputError(f"at is {moment}, expected seconds since 1970")
        tokens = tokenize(text)[: self._settings.most_tokens]
        unknown = self._vocabulary.id(UNKNOWN)
        for word in tokens:
            if self._vocabulary.id(word) == unknown and word != UNKNOWN:
                self._words.see(word, typed_form(text, word), self._store.num_typed)
        self._store.add(self._vocabulary.encode(tokens, self._words.slots), moment)
        self._ngrams = None
        self._num_unsaved += 1
        if self._num_unsaved >= self._settings.save_every:
            self.save()

    def save(self) -> bool:
        """Writes the messages; returns whether they are on the disk, else a notice tells."""
        record = _Record(
            vocabulary=self._vocabulary.sha256,
            examples=self._store.examples,
            words=self._words.words,
            history=self._history,
            share=self._predictor.share,
        )
        try:
            write_sealed(self._folder / STORE_NAME, encode(record))
        except OSError as error:
            self._notice(f"the messages could not be saved ({error.strerror}); free some space")
            return False
        self._num_unsaved = 0
        return True

    def train(self) -> Burst:
        """Runs one burst of training; its state is kept only if it predicts better.

        A burst starts from a state that is on the disk, or from the shipped one, so that it
        can always be rolled back. Where what was learnt is hardly better than the shipped
        model, that takes its place.
        """
        started = time.perf_counter()
        rows = self._cut(self._store.held_out)
        reason = self._why_not(rows)
        if reason is not None:
            return Burst("skipped", reason)
        shipped = self._shipped_loss(rows)
        before, first_step = held_out_loss(self._session, rows), self._session.num_steps
        outcome, reason, after = self._run(rows, before, shipped)
        burst = Burst(
            outcome,
            reason,
            number=self._history.num_bursts + 1,
            before=before,
            after=after,
            shipped=shipped,
            num_steps=self._session.num_steps - first_step,
            seconds=time.perf_counter() - started,
        )
        self._history = self._history.add(burst)
        if outcome == "kept":
            self._unsaved_state = burst.number
            self._predictor.num_taught = self._words.num_given
            self._save_state()
        else:
            if outcome == "returned":
                self._remove_states()
            self._restore()
        self._fit()
        self.save()
        return burst

    def suggest(self, text: str, count: int = 3) -> list[str]:
        """Returns the likeliest next words after a text, best first.

        Where the text is short, the messages before it are the context, too.

        Raises:
            InputError: `count` is not positive.
        """
        if count < 1:
            raise InputError(f"count is {count}, expected at least 1")
        context = self._context(self.encode(text))
        return self._predictor.best(context, self.ngrams, count, self._words.shown)

    def learned(self) -> Learned:
        """Returns what was learnt, as counts."""
        shown = self._words.shown
        return Learned(
            num_messages=len(self._store),
            num_typed=self._store.num_typed,
            own_words=tuple(shown[slot] for slot in sorted(shown)),
            num_candidates=self._words.num_candidates,
            num_kept=self._history.num_kept,
            num_rolled_back=self._history.num_rolled_back,
            num_failed=self._history.num_failed,
            first_loss=self._history.first_loss,
            loss=self._history.loss,
            num_bytes=sum(path.stat().st_size for path in self._files()),
        )

    def forget(self) -> None:
        """Deletes all that was learnt and kept, and returns to the shipped model.

        Raises:
            OSError: a file cannot be deleted.
        """
        self._store, self._words = Store(self._settings), OwnWords(self._settings)
        self._history, self._unsaved_state, self._num_unsaved = History(), None, 0
        self._predictor.share, self._predictor.num_taught, self._ngrams = 0.0, 0, None
        self._session.reset()
        (self._folder / STORE_NAME).unlink(missing_ok=True)
        self._states.remove_all()
        self._remove_temporary()

    def forget_word(self, word: str) -> int:
        """Forgets a word of the owner's, and all messages with it; returns how many.

        The same is done for a word of the vocabulary, which may still be suggested. What the
        model learnt of the word stays in its numbers, but no text leads there any more. Where
        the messages left cannot be written, their file is deleted until they can.

        Raises:
            InputError: it is no single word.
            OSError: the file can neither be written nor deleted.
        """
        tokens = tokenize(word)
        if len(tokens) != 1 or self._vocabulary.id(tokens[0]) in range(2, FIRST_OWN):
            raise InputError(f"{word!r} is not one word; give the words one at a time")
        slot = self._words.forget(tokens[0])
        number = self._vocabulary.id(tokens[0]) if slot is None else FIRST_OWN + slot
        known = number != self._vocabulary.id(UNKNOWN)
        removed = self._store.remove(number) if known else 0
        self._ngrams = None
        if not self.save():
            (self._folder / STORE_NAME).unlink(missing_ok=True)
        return removed

    def _read_store(self) -> _Record | None:
        try:
            value = read_sealed(self._folder / STORE_NAME)
            if value is None:
                return None
            record: _Record = decode(_Record, value, STORE_NAME)
        except ArtifactError as error:
            self._notice(f"the messages are lost, it starts without any: {error}")
            return None
        if record.vocabulary != self._vocabulary.sha256:
            self._notice("the messages are of another vocabulary, it starts without any")
            return None
        return record

    def _restore(self) -> None:
        """Takes the newest good state from the disk, or the shipped one."""
        found = self._states.restore(self._session)
        for line in found.refused:
            self._notice(f"a state could not be used, the one before it is: {line}")
        # A store older than the state, or lost, does not know all slots that have been taught.
        self._predictor.num_taught = int(found.metadata.get("num_slots", "0"))
        self._words.retire(self._predictor.num_taught)
        loss = found.metadata.get("held_out_loss")
        self._history = self._history.with_state(found.number, float(loss) if loss else None)

    def _why_not(self, held_out: Rows) -> str | None:
        found = len(stream(self._store.held_out, self._shape.start))
        least = self._settings.least_held_out
        if found < least or not len(held_out):
            return f"only {found} tokens are held out, {least} are needed; type more"
        if not self._store.trained:
            return "there is no message to train on; type more"
        if not self._save_state():
            return "the state of the burst before is not on the disk; free some space"
        return None

    def _save_state(self) -> bool:
        """Writes a state that is only in memory; returns whether none is left."""
        if self._unsaved_state is None:
            return True
        metadata = {
            "burst": str(self._unsaved_state),
            "held_out_loss": str(self._history.loss),
            "num_slots": str(self._words.num_given),
        }
        try:
            self._states.save(self._session, self._unsaved_state, metadata)
        except CheckpointError as error:
            self._notice(f"what was learnt is kept in memory only: {error}")
            return False
        self._unsaved_state = None
        return True

    def _shipped_loss(self, held_out: Rows) -> float:
        self._session.reset()
        loss = held_out_loss(self._session, held_out)
        self._restore()
        return loss

    def _remove_states(self) -> None:
        try:
            self._states.remove_all()
        except OSError as error:
            self._notice(f"a state that is no better cannot be deleted: {error.strerror}")

    def _run(
        self, held_out: Rows, before: float, shipped: float
    ) -> tuple[Outcome, str, float | None]:
        """Trains; returns what is to become of the burst, why, and the loss after it."""
        try:
            self._run_steps()
            after = held_out_loss(self._session, held_out)
        except NonFiniteError as error:
            return "failed", str(error), None
        except BaseException:
            self._restore()
            raise
        return *decide(before, after, shipped, self._settings), after

    def _run_steps(self) -> None:
        draws = Draws(self._settings.seed, self._history.num_bursts + 1)
        recent = self._store.trained
        # Rows begin elsewhere in each burst: the text starts with another message.
        first = draws.below(len(recent))
        source = batches(
            self._cut([*recent[first:], *recent[:first]]),
            self._cut(self._store.older),
            self._shape.batch,
            self._settings.replay_share,
            draws,
        )
        for rate, rows in zip(rates(self._settings), source, strict=False):
            self._session.step(rows.inputs, rows.targets, rate)

    def _cut(self, messages: list[Tokens]) -> Rows:
        return cut(stream(messages, self._shape.start), self._shape)

    def _context(self, tokens: list[int]) -> list[int]:
        most = self._shape.length - 1
        messages = [*self._store.recent[-most:], tuple(tokens)]
        return stream(messages, self._shape.start)[-most:]

    def _fit(self) -> None:
        self._ngrams = None  # Two at a time would take twice the memory.
        known = self._count([*self._store.older, *self._store.trained])
        text = stream(self._store.held_out, self._shape.start)
        self._predictor.fit(text, known, self._settings.least_ngram_gain)

    def _count(self, messages: list[Tokens]) -> Ngrams:
        return Ngrams(stream(messages, self._shape.start), self._vocabulary.num_tokens)

    def _files(self) -> Iterator[Path]:
        yield from self._folder.glob("state-*.safetensors")
        yield from self._folder.glob(STORE_NAME)

    def _remove_temporary(self) -> None:
        """Removes what a killed process left half written."""
        for pattern in (".state-*.tmp", f".{STORE_NAME}.*.tmp"):
            for path in self._folder.glob(pattern):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _notice(self, text: str) -> None:
        if text not in self._notices:
            self._notices = [*self._notices, text][-_MOST_NOTICES:]
