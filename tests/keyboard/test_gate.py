"""A burst is kept only for a held-out loss that is finite and lower."""

import math
from pathlib import Path

import numpy as np
import pytest

from pockmobile.keyboard.gate import Burst, History, decide, held_out_loss
from pockmobile.keyboard.settings import Settings, Shape, cut
from pockmobile.keyboard.vocabulary import Vocabulary
from pockmobile.session import Session


@pytest.mark.parametrize(
    ("before", "after", "margin", "outcome"),
    [
        (5.0, 4.9, 0.0, "kept"),
        (5.0, 5.0, 0.0, "rolled back"),
        (5.0, 5.1, 0.0, "rolled back"),
        (5.0, 4.9, 0.2, "rolled back"),
        (5.0, 4.7, 0.2, "kept"),
        (5.0, math.nan, 0.0, "failed"),
        (5.0, math.inf, 0.0, "failed"),
        (5.0, -math.inf, 0.0, "failed"),
        (math.nan, 5.0, 0.0, "kept"),
        (math.inf, 5.0, 0.0, "kept"),
        (math.nan, math.nan, 0.0, "failed"),
    ],
)
def test_decisions(before: float, after: float, margin: float, outcome: str) -> None:
    settings = Settings(margin=margin, least_gain=0.1)
    assert decide(before, after, 9.0, settings)[0] == outcome


@pytest.mark.parametrize(
    ("before", "after", "shipped", "outcome"),
    [
        (5.0, 4.8, 5.0, "kept"),  # the first burst
        (5.0, 4.95, 5.0, "returned"),
        (4.95, 4.8, 5.0, "kept"),
        (4.8, 4.9, 5.0, "rolled back"),
        (4.95, 4.92, 5.0, "returned"),
        (5.2, 5.3, 5.0, "returned"),
        (5.2, math.nan, 5.0, "failed"),
        (5.2, 5.1, math.nan, "kept"),
    ],
)
def test_what_is_hardly_better_than_the_shipped_model_goes(
    before: float, after: float, shipped: float, outcome: str
) -> None:
    assert decide(before, after, shipped, Settings(least_gain=0.1))[0] == outcome


def test_the_reason_says_the_losses() -> None:
    settings = Settings()
    assert decide(5, 4.5, 5, settings)[1] == "the held-out loss fell from 5.0000 to 4.5000"
    assert decide(5, 5.5, 6, settings)[1] == "the held-out loss went from 5.0000 to 5.5000"
    assert decide(5, math.nan, 5, settings)[1] == "the held-out loss became nan"
    assert decide(5, 4.5, 4.5, settings)[1] == (
        "the held-out loss is 4.5000, the shipped model's 4.5000"
    )


def test_the_loss_is_that_of_each_token_once(program: Path, vocabulary: Vocabulary) -> None:
    session = Session(program)
    shape = Shape.of(session.manifest, vocabulary)
    text = [0, *range(300, 350)]
    rows = cut(text, shape)
    total = 0.0
    for inputs, targets in zip(rows.inputs, rows.targets, strict=True):
        logits = session.predict(inputs[None])[0].log_softmax(-1).numpy()
        labels = targets[1:]
        places = np.flatnonzero(labels != shape.ignored)
        total -= logits[places, labels[places]].sum()
    assert held_out_loss(session, rows) == pytest.approx(total / 50, rel=1e-5)


def test_the_history_counts_bursts() -> None:
    history = History()
    for burst in (
        Burst("skipped", "too little"),
        Burst("kept", "", 1, 5.0, 4.5),
        Burst("rolled back", "", 2, 4.6, 4.7),
        Burst("failed", "", 3, 4.4, None),
        Burst("kept", "", 4, 4.4, 4.2),
    ):
        history = history.add(burst)
    assert history == History(4, 4, 2, 1, 1, 5.0, 4.2)
    returned = history.add(Burst("returned", "", 5, 4.4, 4.3, 4.35))
    assert returned == History(5, None, 2, 2, 1, 5.0, 4.35)


def test_a_loss_that_is_not_finite_is_not_remembered() -> None:
    history = History().add(Burst("failed", "", 1, math.nan, None))
    assert (history.first_loss, history.loss) == (None, None)


def test_the_history_follows_the_state_that_was_found() -> None:
    history = History(4, 4, 2, 1, 1, 5.0, 4.2)
    assert history.with_state(4, 4.0) is history
    assert history.with_state(1, 4.5) == History(4, 1, 2, 1, 1, 5.0, 4.5)
    assert history.with_state(5, 4.1) == History(5, 5, 3, 1, 1, 5.0, 4.1)
    assert history.with_state(None, None) == History(4, None, 2, 1, 1, 5.0, None)
