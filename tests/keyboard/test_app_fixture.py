"""What apps in other languages replay is what Python measures, and tells mistakes apart."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.runtime import Runtime

import pockmobile
from pockmobile.artifact.codec import decode
from pockmobile.errors import CheckpointError
from pockmobile.keyboard import Personalizer, Vocabulary, tokenize
from pockmobile.keyboard.settings import Shape
from pockmobile.session import Session
from scripts.keyboard_fixture import fixture_model, write_fixture
from scripts.keyboard_fixture_form import (
    Batch,
    Checkpoint,
    Context,
    Fixture,
    Measured,
    Prediction,
)
from tests.eager import Eager

FOLDER = Path(__file__).parents[1] / "fixtures" / "keyboard"
MOST_BYTES = 4_500_000


def read(folder: Path = FOLDER) -> Fixture:
    fixture: Fixture = decode(
        Fixture, json.loads((folder / "fixture.json").read_bytes()), "fixture"
    )
    return fixture


FIXTURE = read()
TOLERANCE = FIXTURE.tolerance
SAYS = {
    "missing": "cannot read",
    "damaged": "damaged",
    "not_a_checkpoint": "not a checkpoint",
    "other_program": "belongs to program",
    "other_state": "holds",
}


def opened() -> Session:
    return Session(FOLDER / FIXTURE.program, threads=1)


def arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return np.array(batch.inputs), np.array(batch.targets)


def is_loss(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=TOLERANCE.loss_relative)


def losses(
    session: Session,
    num_steps: int | None = None,
    rate: Callable[[float], float] = float,
    batches: tuple[Batch, ...] = FIXTURE.batches,
) -> list[float]:
    return [
        session.step(*arrays(batches[step.batch]), rate(step.lr))
        for step in FIXTURE.steps[:num_steps]
    ]


def first_miss(found: list[float]) -> int | None:
    """The number of the first step whose loss is not the fixture's."""
    pairs = zip(found, FIXTURE.steps, strict=False)
    return next(
        (n for n, (loss, step) in enumerate(pairs) if not is_loss(loss, step.loss)), None
    )


def check_evaluation(session: Session, expected: Measured) -> None:
    found = session.evaluate(*arrays(FIXTURE.held_out))
    assert is_loss(found.loss, expected.loss)
    assert found.metrics == {
        "num_correct": expected.num_correct,
        "num_counted": expected.num_counted,
    }
    assert found.accuracy == pytest.approx(expected.accuracy, rel=1e-6)


def check_prediction(session: Session, context: Context, expected: Prediction) -> None:
    output = session.predict(np.array([context.row]))
    assert isinstance(output, torch.Tensor)
    logits = output[0, context.position].tolist()
    vocabulary = Vocabulary.load()
    words = [number for number in range(len(logits)) if vocabulary.is_word(number)]
    best = sorted(words, key=lambda number: -logits[number])[:3]
    assert tuple(best) == expected.tokens
    assert tuple(map(vocabulary.shown, best)) == expected.words
    looked_at = [logits[number] for number in (*best, *FIXTURE.other_tokens)]
    assert looked_at == pytest.approx(
        (*expected.logits, *expected.other_logits), abs=TOLERANCE.logit_absolute, rel=0
    )


@pytest.fixture(scope="module")
def start() -> Session:
    return opened()


@pytest.fixture(scope="module")
def trained() -> tuple[Session, list[float]]:
    session = opened()
    return session, losses(session)


class TestFiles:
    def test_all_are_small(self) -> None:
        assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES

    def test_the_json_can_be_read_in_any_encoding(self) -> None:
        assert (FOLDER / "fixture.json").read_bytes().isascii()

    def test_the_manifest_is_what_the_program_gives(self) -> None:
        program = Runtime.get().load_program(FOLDER / FIXTURE.program)
        (text,) = program.load_method("manifest").execute(())
        assert (FOLDER / FIXTURE.manifest).read_bytes() == text.encode()

    def test_the_program_has_the_form_of_the_shipped_one(self, start: Session) -> None:
        update = dict(start.manifest.plan.update)
        rows = update.pop("embedding.weight")
        assert rows == pockmobile.plan.Slice(0, 0, 2500)
        assert set(update) == {
            "blocks.0.attention_norm.weight",
            "blocks.0.attention_norm.bias",
            "blocks.0.mlp_norm.weight",
            "blocks.0.mlp_norm.bias",
            "norm.weight",
            "norm.bias",
            "head.bias",
        }
        assert set(update.values()) == {None}
        assert (start.manifest.target, start.manifest.clip_norm) == ("xnnpack", 1.0)
        assert start.manifest.optimizer["name"] == "sgd"
        assert start.program_sha256 == FIXTURE.program_sha256

    def test_the_vocabulary_is_the_shipped_one(self, start: Session) -> None:
        vocabulary, sizes = Vocabulary.load(), FIXTURE.sizes
        assert vocabulary.sha256 == FIXTURE.vocabulary_sha256, "run scripts/keyboard_fixture.py"
        assert vocabulary.num_tokens == sizes.num_tokens
        assert Shape.of(start.manifest, vocabulary) == Shape(
            sizes.batch, sizes.length, sizes.start, sizes.ignored
        )


class TestReplay:
    def test_batches_are_whole_ignored_in_part_and_short(self) -> None:
        ignored = [
            any(label == FIXTURE.sizes.ignored for row in batch.targets for label in row)
            for batch in FIXTURE.batches
        ]
        rows = [len(batch.inputs) for batch in FIXTURE.batches]
        assert sorted(zip(rows, ignored, strict=True)) == [
            (2, False),
            (4, False),
            (4, True),
            (4, True),
        ]
        assert {step.batch for step in FIXTURE.steps} == {0, 1, 2, 3}

    def test_each_loss(self, trained: tuple[Session, list[float]]) -> None:
        assert len(trained[1]) == FIXTURE.num_steps
        assert first_miss(trained[1]) is None

    def test_eager_pytorch_has_the_same_losses_and_state(self) -> None:
        manifest = opened().manifest
        eager = Eager(fixture_model(), pockmobile.Program(b"", manifest), pockmobile.SGD())
        found = []
        for step in FIXTURE.steps:
            inputs, targets = map(torch.from_numpy, arrays(FIXTURE.batches[step.batch]))
            # The last place predicts nothing, and nothing predicts the first.
            ended = torch.nn.functional.pad(targets[:, 1:], (0, 1), value=FIXTURE.sizes.ignored)
            found.append(eager.step(inputs, ended, step.lr))
        assert first_miss(found) is None
        restored = opened()
        restored.restore(FOLDER / "good.safetensors")
        for entry in manifest.state:
            torch.testing.assert_close(
                restored.state[entry.name],
                eager.state_of(entry),
                atol=TOLERANCE.state_absolute,
                rtol=0,
            )

    def test_evaluation_before_and_after(
        self, start: Session, trained: tuple[Session, list[float]]
    ) -> None:
        assert len(FIXTURE.held_out.inputs) > FIXTURE.sizes.batch
        check_evaluation(start, FIXTURE.before)
        check_evaluation(trained[0], FIXTURE.after)
        assert FIXTURE.after.loss < FIXTURE.before.loss - 1

    @pytest.mark.parametrize("context", FIXTURE.contexts, ids=lambda context: context.text)
    def test_suggestions_before_and_after(
        self, context: Context, start: Session, trained: tuple[Session, list[float]]
    ) -> None:
        tokens = [FIXTURE.sizes.start, *Vocabulary.load().encode(tokenize(context.text))]
        kept = tokens[-(FIXTURE.sizes.length - 1) :]
        assert list(context.row[: context.position + 1]) == kept
        assert set(context.row[context.position + 1 :]) <= {FIXTURE.sizes.start}
        check_prediction(start, context, context.before)
        check_prediction(trained[0], context, context.after)
        assert context.before.tokens != context.after.tokens


class TestMistakesAreSeen:
    """Each is one that an app can make; one that left the losses as they are would pass."""

    def test_another_learning_rate(self) -> None:
        assert first_miss(losses(opened(), 2, rate=lambda lr: 0.99 * lr)) == 1

    def test_ignored_labels_that_count(self) -> None:
        counted = tuple(replace(batch, targets=batch.inputs) for batch in FIXTURE.batches)
        assert first_miss(losses(opened(), 2, batches=counted)) == 1

    def test_a_short_batch_whose_filling_counts(self) -> None:
        repeated = tuple(
            Batch(
                batch.name,
                (*batch.inputs, *[batch.inputs[-1]] * (4 - len(batch.inputs))),
                (*batch.targets, *[batch.targets[-1]] * (4 - len(batch.targets))),
            )
            for batch in FIXTURE.batches
        )
        assert first_miss(losses(opened(), 4, batches=repeated)) == 3

    def test_a_state_that_does_not_travel(self) -> None:
        found = [
            opened().step(*arrays(FIXTURE.batches[step.batch]), step.lr)
            for step in FIXTURE.steps[:2]
        ]
        assert first_miss(found) == 1

    def test_an_evaluation_that_weighs_batches_alike(self, start: Session) -> None:
        inputs, targets = arrays(FIXTURE.held_out)
        size = FIXTURE.sizes.batch
        parts = [
            start.evaluate(inputs[n : n + size], targets[n : n + size]).loss
            for n in range(0, len(inputs), size)
        ]
        assert not is_loss(sum(parts) / len(parts), FIXTURE.before.loss)

    def test_words_of_the_state_before(self, start: Session) -> None:
        context = FIXTURE.contexts[1]
        with pytest.raises(AssertionError):
            check_prediction(start, context, context.after)


class TestCheckpoints:
    def test_every_verdict_occurs(self) -> None:
        assert {case.verdict for case in FIXTURE.checkpoints} == {"restored", *SAYS}

    @pytest.mark.parametrize("case", FIXTURE.checkpoints, ids=lambda case: case.name)
    def test_verdict(self, case: Checkpoint, tmp_path: Path) -> None:
        path, source = tmp_path / case.file, FOLDER / case.file
        if source.exists():
            data = bytearray(source.read_bytes())
            if case.truncate_to is not None:
                del data[case.truncate_to :]
            if case.flip_at is not None:
                assert case.flip_mask
                data[case.flip_at] ^= case.flip_mask
            path.write_bytes(data)
            is_whole = case.truncate_to is None and case.flip_at is None
            assert (data == source.read_bytes()) == is_whole
        session = opened()
        losses(session, 1)
        before = session.state
        if case.verdict == "restored":
            assert session.restore(path) == FIXTURE.metadata
            assert session.num_steps == FIXTURE.num_steps
            return
        with pytest.raises(CheckpointError, match=SAYS[case.verdict]):
            session.restore(path)
        assert session.num_steps == 1
        assert all(torch.equal(session.state[name], before[name]) for name in before)

    def test_the_good_one_is_the_state_after_the_steps(
        self, trained: tuple[Session, list[float]]
    ) -> None:
        session = opened()
        session.restore(FOLDER / "good.safetensors")
        check_evaluation(session, FIXTURE.after)
        for name, tensor in trained[0].state.items():
            torch.testing.assert_close(
                session.state[name], tensor, atol=TOLERANCE.state_absolute, rtol=0
            )


class TestPersonalizer:
    def test_suggests_with_the_shipped_vocabulary(self, tmp_path: Path) -> None:
        keyboard = Personalizer(FOLDER / FIXTURE.program, tmp_path)
        for context in FIXTURE.contexts:
            assert tuple(keyboard.suggest(context.text)) == context.before.words

    def test_takes_up_the_good_checkpoint(self, tmp_path: Path) -> None:
        shutil.copy(FOLDER / "good.safetensors", tmp_path / "state-1.safetensors")
        keyboard = Personalizer(FOLDER / FIXTURE.program, tmp_path)
        assert keyboard.notices == ()
        for context in FIXTURE.contexts:
            assert tuple(keyboard.suggest(context.text)) == context.after.words


@pytest.mark.slow
def test_the_script_makes_the_same_fixture_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        write_fixture(folder)
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in FOLDER.iterdir()} - {"tokens.json"}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    made = read(first)
    # A newer compiler makes another program of it, which must compute the same.
    assert (made.batches, made.held_out) == (FIXTURE.batches, FIXTURE.held_out)
    assert first_miss([step.loss for step in made.steps]) is None
    assert [context.after.words for context in made.contexts] == [
        context.after.words for context in FIXTURE.contexts
    ]
    assert [(case.name, case.verdict) for case in made.checkpoints] == [
        (case.name, case.verdict) for case in FIXTURE.checkpoints
    ]
