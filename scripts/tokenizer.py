"""The byte-pair tokenizer of llama2.c, for stories260K."""

import re
from itertools import pairwise
from typing import Final, final


@final
class Tokenizer:
    """The byte-pair tokenizer of llama2.c: merges the best-scored neighbours first."""

    BEGIN: Final = 1
    END: Final = 2

    def __init__(self, pieces: list[bytes], scores: list[float]) -> None:
        """Takes the vocabulary: the bytes of each token, and its score."""
        self.pieces = pieces
        self.scores = scores
        self._ids = {piece: index for index, piece in enumerate(pieces)}

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, `BEGIN` first."""
        ids: list[int] = []
        # The vocabulary's words begin with a space, so the first one gets it too.
        for character in f" {text}" if text else "":
            piece = character.encode()
            known = self._ids.get(piece)
            ids += [known] if known is not None else [self._byte_id(byte) for byte in piece]
        while (best := self._best_merge(ids)) is not None:
            index, merged = best
            ids[index : index + 2] = [merged]
        return [self.BEGIN, *ids]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of token ids; `BEGIN` and `END` are left out."""
        parts = [self._bytes(index) for index in ids if index not in (self.BEGIN, self.END)]
        return b"".join(parts).decode(errors="replace").removeprefix(" ")

    def _byte_id(self, byte: int) -> int:
        return self._ids[f"<0x{byte:02X}>".encode()]

    def _bytes(self, index: int) -> bytes:
        piece = self.pieces[index]
        byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", piece)
        return bytes([int(byte[1], 16)]) if byte else piece

    def _best_merge(self, ids: list[int]) -> tuple[int, int] | None:
        best: tuple[float, int, int] | None = None
        for index, (left, right) in enumerate(pairwise(ids)):
            merged = self._ids.get(self.pieces[left] + self.pieces[right])
            if merged is not None and (best is None or self.scores[merged] > best[0]):
                best = (self.scores[merged], index, merged)
        return best[1:] if best else None
