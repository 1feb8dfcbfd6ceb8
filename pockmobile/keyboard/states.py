"""The last good states of the model on disk: the newest that can be read wins."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from pockmobile.errors import CheckpointError
from pockmobile.session import Session

_NAME: Final = re.compile(r"state-([0-9]{1,9})\.safetensors")


@final
@dataclass(frozen=True)
class Restored:
    """The state found (its number and metadata; None: the shipped one), and what was refused.

    Each of `refused` is one line that says which file, and why.
    """

    number: int | None
    metadata: Mapping[str, str]
    refused: tuple[str, ...]


@final
class States:
    """The files `state-<number>.safetensors` of a folder; a higher number is newer.

    There is no index that could disagree with the files.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        """Keeps the `most` newest."""
        self._folder, self._most = folder, most
        self._refused: set[int] = set()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the files, newest first; those that cannot be read too."""
        return sorted((number for number, _ in self._files()), reverse=True)

    def restore(self, session: Session) -> Restored:
        """Gives a session the newest state that can be read, or the shipped one."""
        refused: list[str] = []
        for number in self.numbers:
            try:
                metadata = session.restore(self._path(number))
            except CheckpointError as error:
                refused.append(str(error))
                self._refused.add(number)
            else:
                return Restored(number, metadata, tuple(refused))
        session.reset()
        return Restored(None, {}, tuple(refused))

    def save(self, session: Session, number: int, metadata: Mapping[str, str]) -> None:
        """Writes the state as the newest one, then removes those that are too many.

        Raises:
            CheckpointError: it cannot be written; the files are as they were.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {self._folder}: {error.strerror}") from error
        session.save(self._path(number), metadata)
        self._refused.discard(number)
        good = [found for found in self.numbers if found not in self._refused]
        for found in {*good[self._most :], *self._refused}:
            self._remove(found)

    def remove_all(self) -> None:
        """Removes every state.

        Raises:
            OSError: a file cannot be removed.
        """
        for _, path in self._files():
            path.unlink(missing_ok=True)
        self._refused.clear()

    def _files(self) -> list[tuple[int, Path]]:
        found = [(path, _NAME.fullmatch(path.name)) for path in self._folder.glob("state-*")]
        return [(int(match[1]), path) for path, match in found if match]

    def _path(self, number: int) -> Path:
        return self._folder / f"state-{number}.safetensors"

    def _remove(self, number: int) -> None:
        try:
            self._path(number).unlink(missing_ok=True)
        except OSError:
            return  # One file too many does no harm, and is tried again at the next save.
        self._refused.discard(number)
