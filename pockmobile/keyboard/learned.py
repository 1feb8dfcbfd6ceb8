"""What a keyboard learnt, told to its owner."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Learned:
    """What was learnt, as counts for its owner.

    `num_messages` are kept, each counted once; `num_typed` were ever added. Losses are those of
    the text held out at the time, before the first burst and of the present state.
    """

    num_messages: int
    num_typed: int
    own_words: tuple[str, ...]
    num_candidates: int
    num_kept: int
    num_rolled_back: int
    num_failed: int
    first_loss: float | None
    loss: float | None
    num_bytes: int
