"""What the cost model says of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from pockmobile.cost.memory import Moment
from pockmobile.cost.work import Work


@final
@dataclass(frozen=True)
class Estimate:
    """What a training step is predicted to need.

    `planned_bytes` and `workspace_bytes` are those of the manifest: what the runtime plans,
    and what delegates need beside it. `state_bytes` are the trained tensors and the
    optimizer's, `seconds` the time of a step on one thread (see `rates`).
    """

    planned_bytes: int
    workspace_bytes: int
    state_bytes: int
    seconds: float
    work: Mapping[Work, float]
    moments: Sequence[Moment]

    @property
    def memory_bytes(self) -> int:
        """All bytes of a step beside frozen weights and the state that comes in."""
        return self.planned_bytes + self.workspace_bytes
