"""What a plan may cost, and what it costs."""

from dataclasses import dataclass
from typing import final

from pockmobile.errors import UsageError


@final
@dataclass(frozen=True)
class Budget:
    """The most that a training step may cost: memory, time, or both.

    `memory_bytes` are bytes beside the frozen weights; `step_ratio` is the time of a step
    relative to training everything.

    Raises:
        UsageError: there is no limit, or one that is not positive.
    """

    memory_bytes: int | None = None
    step_ratio: float | None = None

    def __post_init__(self) -> None:
        """Refuses limits that limit nothing, or everything."""
        if self.memory_bytes is None and self.step_ratio is None:
            raise UsageError("a budget needs memory_bytes, step_ratio or both; found neither")
        for name in ("memory_bytes", "step_ratio"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:  # NaN is not positive either.
                raise UsageError(f"a budget's {name} must be positive, found {limit}")

    def __str__(self) -> str:
        """The limits, as people read them."""
        memory = _memory(self.memory_bytes) if self.memory_bytes is not None else ""
        time = _time(self.step_ratio) if self.step_ratio is not None else ""
        return " and ".join(limit for limit in (memory, time) if limit)


@final
@dataclass(frozen=True)
class Cost:
    """What a training step of one plan needs, in the units of `Budget`."""

    memory_bytes: int
    step_ratio: float

    def fits(self, budget: Budget) -> bool:
        """Whether no limit is exceeded."""
        return (budget.memory_bytes is None or self.memory_bytes <= budget.memory_bytes) and (
            budget.step_ratio is None or self.step_ratio <= budget.step_ratio
        )

    def __sub__(self, other: "Cost") -> "Cost":
        """Returns what this needs beyond the other."""
        memory = self.memory_bytes - other.memory_bytes
        return Cost(memory, self.step_ratio - other.step_ratio)

    def __str__(self) -> str:
        """Both numbers, as people read them."""
        return f"{_memory(self.memory_bytes)} and {_time(self.step_ratio)}"


def _memory(num_bytes: int) -> str:
    """Megabytes, so exact that a limit just missed does not look like one that is met."""
    return f"{num_bytes / 1e6:.6g} MB"


def _time(step_ratio: float) -> str:
    return f"{step_ratio:.4g} of a full step's time"
