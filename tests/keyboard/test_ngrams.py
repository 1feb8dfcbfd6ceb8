"""The owner's n-grams, against counting by hand."""

import math

import numpy as np
import pytest
import torch

from pockmobile.keyboard.ngrams import Ngrams, best_share, mixed


def test_a_history_leaves_what_witten_and_bell_say() -> None:
    found = Ngrams([0, 1, 2, 0, 1, 3, 4, 1], 5).after([0, 1])
    words = np.array([2, 3, 1, 1, 1]) / 8
    # Behind 1 stood 2 and 3, behind 0 1 the same: each time 2 tokens of 2 kinds.
    pairs = (np.array([0, 0, 1, 1, 0]) + 2 * words) / 4
    triples = (np.array([0, 0, 1, 1, 0]) + 2 * pairs) / 4
    np.testing.assert_allclose(found, triples, rtol=1e-6)


def test_what_is_found_is_a_distribution() -> None:
    text = torch.randint(20, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    ngrams = Ngrams(text[:400], 20)
    for place in range(400, 500):
        found = ngrams.after(text[:place])
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1, abs=1e-5)


def test_an_unknown_history_leaves_single_words() -> None:
    found = Ngrams([0, 0, 1], 3).after([2, 2])
    np.testing.assert_allclose(found, [2 / 3, 1 / 3, 0])


def test_nothing_counted_says_nothing() -> None:
    assert not Ngrams([], 3).after([1, 2]).any()


def test_a_context_may_be_short_or_empty() -> None:
    ngrams = Ngrams([0, 1, 0, 1], 2)
    np.testing.assert_allclose(ngrams.after([]), [0.5, 0.5])
    assert ngrams.after([0])[1] > ngrams.after([1])[1]


def test_the_share_follows_who_is_right() -> None:
    right, wrong = [0.9, 0.9], [0.1, 0.1]
    assert best_share(right, wrong, 0.0) == 0.0
    assert best_share(wrong, right, 0.0) == 0.8
    assert best_share([0.5], [0.5], 0.0) == 0.0
    assert best_share([], [], 0.0) == 0.0


def test_a_share_must_be_worth_it() -> None:
    model, ngrams = [0.5, 0.5], [0.6, 0.6]
    gain = math.log(0.2 * 0.5 + 0.8 * 0.6) - math.log(0.5)
    assert best_share(model, ngrams, gain - 1e-6) == 0.8
    assert best_share(model, ngrams, gain + 1e-6) == 0.0


def test_a_mixture_is_between() -> None:
    both = mixed(np.float32([0.9, 0.1]), np.float32([0.1, 0.9]), 0.25)
    np.testing.assert_allclose(both, [0.7, 0.3], rtol=1e-6)
