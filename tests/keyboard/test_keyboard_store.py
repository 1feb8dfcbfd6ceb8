"""The store is bounded, counts what is repeated, and holds the newest messages out."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pockmobile.errors import ArtifactError, UsageError
from pockmobile.keyboard.settings import (
    Draws,
    Rows,
    Settings,
    Shape,
    batches,
    cut,
    rates,
    stream,
)
from pockmobile.keyboard.store import Store, read_sealed, write_sealed

SHAPE = Shape(batch=4, length=5, start=0, ignored=-100)


def filled(num_messages: int, **settings: Any) -> Store:
    store = Store(Settings(**settings))
    for number in range(num_messages):
        store.add((number, 5000), number)
    return store


class TestStore:
    def test_newest_are_recent_and_the_newest_of_them_held_out(self) -> None:
        store = filled(25, num_recent=10, num_older=4)
        assert [tokens[0] for tokens in store.trained] == list(range(15, 23))
        assert [tokens[0] for tokens in store.held_out] == [23, 24]
        assert len(store.older) == 4
        assert all(tokens[0] < 15 for tokens in store.older)

    def test_what_ages_out_of_the_held_out_part_is_trained(self) -> None:
        store = filled(10, num_recent=10)
        assert (9, 5000) in store.held_out
        for number in range(10, 12):
            store.add((number, 5000), number)
        assert (9, 5000) in store.trained

    def test_too_few_messages_hold_none_out(self) -> None:
        store = filled(4)
        assert store.held_out == []
        assert len(store.trained) == 4

    def test_a_repeat_is_counted_where_it_stands(self) -> None:
        store = filled(20, num_recent=10, num_older=20)
        before = store.recent, store.older
        store.add((12, 5000), 30)
        store.add([3, 5000], 31)
        assert (store.recent, store.older) == before
        counts = {e.tokens[0]: e.count for e in (*store.examples.recent, *store.examples.older)}
        assert {token for token, count in counts.items() if count == 2} == {3, 12}
        assert (len(store), store.num_typed) == (20, 22)

    def test_an_empty_message_is_none(self) -> None:
        store = filled(0)
        store.add((), 1)
        assert (len(store), store.num_typed) == (0, 0)

    def test_time_never_goes_back(self) -> None:
        store = filled(0)
        for number, at in enumerate((100.7, 50, -3, 200, 199)):
            store.add((number,), at)
        assert [example.at for example in store.examples.recent] == [100, 100, 100, 200, 200]

    def test_older_ones_are_a_fair_sample(self) -> None:
        found: Counter[int] = Counter()
        for seed in range(200):
            store = filled(101, num_recent=1, num_older=10, seed=seed)
            found.update(tokens[0] // 20 for tokens in store.older)
        # 400 of each fifth are expected; the standard deviation is below 18.
        assert all(320 < found[fifth] < 480 for fifth in range(5))

    def test_messages_with_a_token_are_removed(self) -> None:
        store = filled(0, num_recent=2, num_older=2)
        for tokens in ((1, 2), (2, 3), (3, 4), (4, 2)):
            store.add(tokens, 0)
        assert store.remove(2) == 3
        assert (store.recent, store.older) == ([(3, 4)], [])
        store.add((5,), 0)
        store.add((6,), 0)
        assert (store.recent, store.older) == ([(5,), (6,)], [(3, 4)])

    def test_goes_on_as_if_it_had_not_been_closed(self) -> None:
        settings = Settings(num_recent=5, num_older=5)
        whole, parts = Store(settings), Store(settings)
        for number in range(60):
            whole.add((number % 40,), number)
            parts.add((number % 40,), number)
            parts = Store(settings, parts.examples)
        assert parts.examples == whole.examples

    def test_smaller_sizes_let_the_oldest_go(self) -> None:
        large = filled(30, num_recent=10, num_older=20)
        small = Store(Settings(num_recent=4, num_older=3), large.examples)
        assert [tokens[0] for tokens in small.recent] == [26, 27, 28, 29]
        assert len(small.older) == 3

    @given(st.lists(st.integers(0, 30)), st.integers(1, 9), st.integers(0, 9))
    def test_stays_within_its_bounds(self, typed: list[int], recent: int, older: int) -> None:
        store = Store(Settings(num_recent=recent, num_older=older))
        for number in typed:
            store.add((number,), 0)
        assert len(store.recent) <= recent
        assert len(store.older) <= older
        assert len({*store.recent, *store.older}) == len(store) <= len(set(typed))
        assert store.recent == store.trained + store.held_out


class TestFile:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file"
        write_sealed(path, {"a": [1, "\u00e9\n"]})
        assert read_sealed(path) == {"a": [1, "\u00e9\n"]}
        assert len([json.loads(line) for line in path.read_bytes().splitlines()]) == 2

    def test_no_file_is_no_value(self, tmp_path: Path) -> None:
        assert read_sealed(tmp_path / "file") is None

    @pytest.mark.parametrize("place", [0, 5, 40, 90, -2])
    def test_a_changed_byte_is_found(self, tmp_path: Path, place: int) -> None:
        path = tmp_path / "file"
        write_sealed(path, list(range(20)))
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(ArtifactError):
            read_sealed(path)

    @pytest.mark.parametrize("size", [0, 1, 60, 100, 110])
    def test_a_cut_file_is_found(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "file"
        write_sealed(path, list(range(20)))
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ArtifactError, match="is damaged"):
            read_sealed(path)

    def test_other_formats_and_folders_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text('{"pockmobile_store": 2, "sha256": ""}\n[]\n')
        with pytest.raises(ArtifactError, match="has format 2, this pockmobile reads 1"):
            read_sealed(path)
        with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
            read_sealed(tmp_path)


class TestRows:
    @given(st.lists(st.integers(1, 99), max_size=40))
    def test_each_token_but_the_first_is_predicted_once(self, text: list[int]) -> None:
        rows = cut(text, SHAPE)
        labels = rows.targets[:, 1:]
        assert labels[labels != -100].tolist() == text[1:]
        inside = rows.targets != -100
        assert (rows.inputs[inside] == rows.targets[inside]).all()
        assert (rows.inputs[~inside] == 0).all()
        assert inside[:, :2].all()

    def test_a_message_begins_with_the_start(self) -> None:
        assert stream([(7, 8), (), (9,)], 1) == [1, 7, 8, 1, 1, 9]

    def test_the_rate_falls_to_zero(self) -> None:
        assert rates(Settings(num_steps=4, lr=1.0)) == [1.0, 0.75, 0.5, 0.25]

    @pytest.mark.parametrize(("share", "num_older"), [(0, 0), (0.25, 1), (0.5, 2), (1, 4)])
    def test_a_batch_has_its_share_of_older_rows(self, share: float, num_older: int) -> None:
        recent, older = numbered(range(5)), numbered(range(100, 107))
        source = batches(recent, older, 4, share, Draws(0, 0))
        found = np.concatenate([next(source).inputs[:, 0] for _ in range(35)])
        assert (found >= 100).sum() == 35 * num_older
        counts = np.unique(found, return_counts=True)[1]
        # A row comes again only when all of its source have come.
        assert len(counts) == 5 * (num_older < 4) + 7 * (num_older > 0)
        expected = {35 * (4 - num_older) // 5, 35 * num_older // 7}
        assert set(counts.tolist()) <= expected

    def test_an_empty_source_is_replaced_by_the_other(self) -> None:
        none, some = numbered(range(0)), numbered(range(3))
        assert len(next(batches(some, none, 4, 0.5, Draws(0, 0)))) == 4
        assert len(next(batches(none, some, 4, 0.5, Draws(0, 0)))) == 4


def numbered(numbers: range) -> Rows:
    values = np.repeat(np.array(numbers, np.int64)[:, None], SHAPE.length, 1)
    return Rows(values, values)


class TestDraws:
    def test_is_splitmix64(self) -> None:
        # The first outputs of the generator of Steele, Lea and Flood for the seed 1234567.
        draws = Draws(0, 1234567)
        assert [draws.below(2**64) for _ in range(3)] == [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
        ]

    def test_an_order_holds_each_number(self) -> None:
        orders = [Draws(0, number).order(9) for number in range(20)]
        assert all(sorted(order) == list(range(9)) for order in orders)
        assert all(one != other for one, other in pairwise(orders))


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("num_recent", 0, "num_recent is 0, expected at least 1"),
            ("num_older", -1, "num_older is -1, expected at least 0"),
            ("held_out_part", 1, "held_out_part is 1, expected at least 2"),
            ("save_every", 0, "save_every is 0, expected at least 1"),
            ("replay_share", 1.5, "replay_share is 1.5, expected 0 to 1"),
        ],
    )
    def test_wrong_numbers_are_refused(self, name: str, value: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Settings(**{name: value})
