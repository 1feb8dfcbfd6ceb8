"""The gate: what is learnt is kept only if the text held out is predicted better."""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

from pockmobile.keyboard.settings import Rows, Settings
from pockmobile.session import Session

Outcome: TypeAlias = Literal["kept", "rolled back", "returned", "failed", "skipped"]


@final
@dataclass(frozen=True)
class Burst:
    """What became of a burst; losses are those of the text held out.

    `shipped` is the loss of the shipped model. After a burst that "returned" the model is the
    shipped one: neither the state before nor that after predicts so much better. A burst that
    failed met a number that is not finite; one that was skipped did no step, has
    no number, and `reason` says what is missing.
    """

    outcome: Outcome
    reason: str
    number: int | None = None
    before: float | None = None
    after: float | None = None
    shipped: float | None = None
    num_steps: int = 0
    seconds: float = 0.0


@final
@dataclass(frozen=True)
class History:
    """Counts of all bursts, and the held-out loss before the first and of the present state.

    `state` is the number of the burst that made the present state; None is the shipped one.
    """

    num_bursts: int = 0
    state: int | None = None
    num_kept: int = 0
    num_rolled_back: int = 0
    num_failed: int = 0
    first_loss: float | None = None
    loss: float | None = None

    def add(self, burst: Burst) -> "History":
        """Returns the history with one burst more; a skipped one counts for nothing."""
        if burst.number is None:
            return self
        now = {"kept": burst.after, "returned": burst.shipped}.get(burst.outcome, burst.before)
        return replace(
            self,
            num_bursts=burst.number,
            state={"kept": burst.number, "returned": None}.get(burst.outcome, self.state),
            num_kept=self.num_kept + (burst.outcome == "kept"),
            num_rolled_back=self.num_rolled_back
            + (burst.outcome in ("rolled back", "returned")),
            num_failed=self.num_failed + (burst.outcome == "failed"),
            first_loss=_finite(burst.before) if self.first_loss is None else self.first_loss,
            loss=_finite(now),
        )

    def with_state(self, number: int | None, loss: float | None) -> "History":
        """Returns the history as of a state that was found on the disk, with its loss.

        That may be an older one, or one of a burst that was kept but not counted any more.
        """
        if number == self.state:
            return self
        is_new = number is not None and number > self.num_bursts
        return replace(
            self,
            num_bursts=max(self.num_bursts, number or 0),
            num_kept=self.num_kept + is_new,
            state=number,
            loss=loss,
        )


def held_out_loss(session: Session, rows: Rows) -> float:
    """Returns the mean loss of a token of the text held out."""
    return session.evaluate(rows.inputs, rows.targets).loss


def decide(
    before: float, after: float, shipped: float, settings: Settings
) -> tuple[Outcome, str]:
    """Returns what becomes of a burst, and why.

    The loss must be finite, and lower than before by more than `settings.margin`. A loss
    before that is not finite is worse than any other. The better of the two states must then
    surpass the shipped model by more than `settings.least_gain`.
    """
    if not math.isfinite(after):
        return "failed", f"the held-out loss became {after}"
    is_better = not math.isfinite(before) or after < before - settings.margin
    best = after if is_better else before
    if math.isfinite(shipped) and not best < shipped - settings.least_gain:
        return "returned", f"the held-out loss is {best:.4f}, the shipped model's {shipped:.4f}"
    if is_better:
        return "kept", f"the held-out loss fell from {before:.4f} to {after:.4f}"
    return "rolled back", f"the held-out loss went from {before:.4f} to {after:.4f}"


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
