"""Makes the fixture by which the keyboards in Kotlin and Swift are held to Python's.

    python scripts/keyboard_fixture.py -o tests/fixtures/keyboard

writes a small program, its manifest, checkpoints, and `fixture.json`: what Python measured.
`docs/keyboard_fixture.md` says what each field holds.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.artifact.checkpoint import save_checkpoint
from pockmobile.artifact.codec import encode
from pockmobile.commands import run
from pockmobile.errors import CheckpointError
from pockmobile.keyboard import Vocabulary, tokenize
from pockmobile.keyboard.settings import Rows, Shape, cut, stream
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.plan import Slice, UpdatePlan
from scripts.keyboard_fixture_form import (
    Batch,
    Checkpoint,
    Context,
    Fixture,
    Measured,
    Prediction,
    Sizes,
    Step,
    Tolerance,
    json_lines,
)

FORMAT: Final = 1
PROGRAM: Final = "keyboard.pte"
MANIFEST: Final = "manifest.json"
FIXTURE: Final = "fixture.json"
GOOD: Final = "good.safetensors"

_SEED: Final = 4
_WIDTH: Final = 24
_NUM_TRAINED: Final = 2500
_WEIGHT_RANGE: Final = 0.4
_NUM_STEPS: Final = 20
_LRS: Final = tuple((_NUM_STEPS - step) / 16 for step in range(_NUM_STEPS))
"""Each is a number that float32 holds exactly."""
_DIGITS: Final = 7
"""What float32 holds: more would differ from one processor to the next."""
_FEWEST_TIMES: Final = 5.0
"""How far apart two tokens' logits must be, in tolerances, for their order to be certain."""

TYPED: Final = (
    "Good morning! How are you today?",
    "I am running a bit late, see you at seven by the station.",
    "Can you bring the blue umbrella? I think it will rain.",
    "Thank you so much, that was very kind of you.",
    "We are having dinner at home tonight, do you want to come?",
    "The train is late again, I will be there in 20 minutes.",
    "Did you see the game last night? It was great :)",
    "I don't know yet, let me ask her and call you back.",
    "Please don't forget to buy some milk and bread on the way home.",
    "See you at the station tomorrow morning!",
    "I will be home in an hour, do you want me to buy some bread?",
    "It was great to see you again, let me know how it went.",
)
HELD_OUT: Final = (
    "Good morning! Do you want to come to the game tonight?",
    "I am at the station, the train is running late again.",
    "Thank you, I will be home in 10 minutes. See you at dinner!",
    "I don't think it will rain today, but let me know.",
    "How was it? Did you see her last night?",
    "Please call me back, I will buy the bread and some milk on the way.",
    "That was so kind of you, see you tomorrow.",
)
CONTEXTS: Final = (
    "",
    "I will be",
    "See you at",
    "Zqxvorb is 12 years old \U0001f600 and",
    "I think we are having dinner at home tonight, so please don't forget to buy the",
)
OTHER_TOKENS: Final = (0, 7, _NUM_TRAINED - 1, _NUM_TRAINED, 9999)
"""Looked at beside the suggestions: both sides of where the trained rows end, for one."""
METADATA: Final = {"burst": "1", "note": "caf\u00e9 \u4f60\u597d"}

_REFUSED: Final = (
    "plain.safetensors",
    "other_format.safetensors",
    "other_program.safetensors",
    "other_tensors.safetensors",
    "other_shapes.safetensors",
)
_VERDICTS: Final = (
    ("missing", r"cannot read "),
    ("damaged", r".* is cut short, damaged, or not a safetensors file"),
    ("damaged", r".* is damaged: its contents do not match"),
    ("not_a_checkpoint", r".* is a safetensors file but not a checkpoint of format"),
    ("other_program", r".* belongs to program"),
    ("other_state", r".* holds "),
)


def fixture_model() -> TransformerLM:
    """Returns the model: weights between -0.4 and 0.4, those of norms around 1.

    They are drawn so that each processor draws the same bits.
    """
    model = TransformerLM(
        num_tokens=Vocabulary.load().num_tokens,
        context=16,
        width=_WIDTH,
        num_blocks=1,
        num_heads=2,
        head_bias=True,
    )
    rng = np.random.default_rng(_SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = rng.random(tuple(parameter.shape), dtype=np.float32)
            parameter.copy_(torch.from_numpy((2 * drawn - 1) * np.float32(_WEIGHT_RANGE)))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def fixture_program() -> pockmobile.Program:
    """Returns the program: it trains the frequent words' rows, the norms and the head bias."""
    model = fixture_model()
    update: dict[str, Slice | None] = {
        name: None
        for name, _ in model.named_parameters()
        if "norm" in name or name == "head.bias"
    }
    return pockmobile.compile(
        model,
        (torch.zeros(4, 16, dtype=torch.int64),),
        loss="next_token",
        plan=UpdatePlan({"embedding.weight": Slice(0, 0, _NUM_TRAINED), **update}),
        optimizer=pockmobile.SGD(),
        clip_norm=1.0,
        predict_batch_size=1,
    )


def write_fixture(folder: Path) -> None:
    """Writes all files of the fixture but the tokeniser's vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    fixture_program().save(folder / PROGRAM)
    session = pockmobile.Session(folder / PROGRAM, threads=1)
    (folder / MANIFEST).write_bytes(session.manifest.to_json().encode())
    fixture = _measure(session, folder)
    text = "\n".join(json_lines(encode(fixture)))
    (folder / FIXTURE).write_bytes(f"{text}\n".encode())


def _measure(session: pockmobile.Session, folder: Path) -> Fixture:
    vocabulary = Vocabulary.load()
    shape = Shape.of(session.manifest, vocabulary)
    batches = _batches(_cut(TYPED, vocabulary, shape), shape)
    held_out = _batch("held out", _cut(HELD_OUT, vocabulary, shape))
    before, seen = (
        _evaluate(session, held_out, shape.ignored),
        _predictions(session, vocabulary, shape),
    )
    steps = tuple(_step(session, batches, number) for number in range(_NUM_STEPS))
    after = _evaluate(session, held_out, shape.ignored)
    contexts = tuple(
        Context(text, *_row(text, vocabulary, shape), first, then)
        for text, first, then in zip(
            CONTEXTS, seen, _predictions(session, vocabulary, shape), strict=True
        )
    )
    _write_checkpoints(session, folder)
    return Fixture(
        format=FORMAT,
        program=PROGRAM,
        program_sha256=session.program_sha256,
        manifest=MANIFEST,
        vocabulary_sha256=vocabulary.sha256,
        sizes=Sizes(
            vocabulary.num_tokens, shape.batch, shape.length, shape.start, shape.ignored
        ),
        tolerance=Tolerance(),
        batches=batches,
        steps=steps,
        held_out=held_out,
        before=before,
        after=after,
        other_tokens=OTHER_TOKENS,
        contexts=contexts,
        num_steps=session.num_steps,
        metadata=METADATA,
        checkpoints=tuple(_tried(case, session, folder) for case in _cases(folder)),
    )


def _cut(texts: Sequence[str], vocabulary: Vocabulary, shape: Shape) -> Rows:
    messages = [tuple(vocabulary.encode(tokenize(text))) for text in texts]
    return cut(stream(messages, shape.start), shape)


def _batch(name: str, rows: Rows) -> Batch:
    return Batch(
        name, *(tuple(map(tuple, part.tolist())) for part in (rows.inputs, rows.targets))
    )


def _batches(rows: Rows, shape: Shape) -> tuple[Batch, ...]:
    """Two whole batches, one whose labels count in part, and one that is to be filled up."""
    size = shape.batch
    partly = rows.take(range(size, 2 * size))
    partly.targets[0, 8:] = shape.ignored
    partly.targets[1, :8] = shape.ignored
    partly.targets[2] = shape.ignored
    return (
        _batch("whole", rows.take(range(size))),
        _batch("some labels ignored", partly),
        _batch("another whole", rows.take(range(len(rows) - size, len(rows)))),
        _batch("short", rows.take(range(size + 2, size + 4))),
    )


def _step(session: pockmobile.Session, batches: Sequence[Batch], number: int) -> Step:
    """Takes the batches in turn."""
    turn, lr = number % len(batches), _LRS[number]
    loss = session.step(np.array(batches[turn].inputs), np.array(batches[turn].targets), lr)
    return Step(turn, lr, _rounded(loss))


def _evaluate(session: pockmobile.Session, batch: Batch, ignored: int) -> Measured:
    inputs, targets = np.array(batch.inputs), np.array(batch.targets)
    output = session.predict(inputs)
    assert isinstance(output, torch.Tensor)
    counted = torch.from_numpy(targets[:, 1:]) != ignored
    _check_order(batch.name, output[:, :-1][counted].topk(2).values)
    found = session.evaluate(inputs, targets)
    return Measured(
        loss=_rounded(found.loss),
        accuracy=_rounded(found.accuracy),
        num_correct=int(found.metrics["num_correct"]),
        num_counted=int(found.metrics["num_counted"]),
    )


def _row(text: str, vocabulary: Vocabulary, shape: Shape) -> tuple[tuple[int, ...], int]:
    """Returns the row that the keyboard predicts from, and its last place that has text."""
    tokens = [shape.start, *vocabulary.encode(tokenize(text))][-(shape.length - 1) :]
    filler = [shape.start] * (shape.length - len(tokens))
    return (*tokens, *filler), len(tokens) - 1


def _predictions(
    session: pockmobile.Session, vocabulary: Vocabulary, shape: Shape
) -> list[Prediction]:
    is_word = torch.tensor([vocabulary.is_word(n) for n in range(vocabulary.num_tokens)])
    found = []
    for text in CONTEXTS:
        row, position = _row(text, vocabulary, shape)
        output = session.predict(np.array([row]))
        assert isinstance(output, torch.Tensor)
        logits = output[0, position]
        best = logits.masked_fill(~is_word, -torch.inf).topk(4)
        _check_order(text, best.values)
        tokens = tuple(best.indices.tolist()[:3])
        found.append(
            Prediction(
                tokens=tokens,
                words=tuple(map(vocabulary.shown, tokens)),
                logits=tuple(map(_rounded, best.values.tolist()[:3])),
                other_logits=tuple(_rounded(logits[token].item()) for token in OTHER_TOKENS),
            )
        )
    return found


def _check_order(text: str, best: torch.Tensor) -> None:
    """Refuses logits [..., k] so close that another processor might order them otherwise."""
    least = float((best[..., :-1] - best[..., 1:]).min())
    if least < _FEWEST_TIMES * Tolerance().logit_absolute:
        raise ValueError(
            f"two of the best logits of {text!r} differ by {least:.4f} alone; choose another "
            "text or seed"
        )


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _write_checkpoints(session: pockmobile.Session, folder: Path) -> None:
    """Writes the state, and small files of the same form that must be refused."""
    session.save(folder / GOOD, METADATA)
    own, other = session.program_sha256, "0" * 64
    few = {"embedding.weight": torch.zeros(2, 3)}
    small = {name: torch.zeros(2, 3) for name in session.state}
    plain, later, *refused = (folder / name for name in _REFUSED)
    plain.write_bytes(safetensors.torch.save(few))
    header = {"program_sha256": own, "num_steps": str(_NUM_STEPS), "sha256": other}
    later.write_bytes(safetensors.torch.save(few, {"pockmobile_checkpoint": "2", **header}))
    contents = ((other, few), (own, few), (own, small))
    for path, (sha256, tensors) in zip(refused, contents, strict=True):
        save_checkpoint(
            path, tensors, program_sha256=sha256, num_steps=_NUM_STEPS, metadata=METADATA
        )
    for name in (GOOD, *_REFUSED):
        _sort_metadata(folder / name)


def _sort_metadata(path: Path) -> None:
    """Puts a file's metadata in order: safetensors writes it in another one each time."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= length
    path.write_bytes(data[:8] + text.ljust(length) + data[8 + length :])


def _cases(folder: Path) -> list[Checkpoint]:
    data = (folder / GOOD).read_bytes()
    first = 8 + int.from_bytes(data[:8], "little")
    num_bytes = len(data)
    cuts = {
        "empty": 0,
        "cut in the header's length": 5,
        "cut in the header": first // 2,
        "cut behind the header": first,
        "cut in the data": (first + num_bytes) // 2,
        "last byte missing": num_bytes - 1,
    }
    flips = {
        "header's length a little off": (0, 0x08),
        "header's length enormous": (7, 0x40),
        "header no longer JSON": (8, 0x01),
        "number of steps changed": (_behind(data, b'"num_steps":"'), 0x01),
        "the host's metadata changed": (_behind(data, b'"burst":"'), 0x02),
        "program's SHA-256 changed": (_behind(data, b'"program_sha256":"'), 0x01),
        "checkpoint's SHA-256 changed": (_behind(data, b'"sha256":"'), 0x01),
        "shape changed": (_behind(data, b'"shape":['), 0x01),
        "place of a tensor changed": (_behind(data, b'"data_offsets":['), 0x01),
        "first byte of the data": (first, 0x01),
        "a byte in the middle of the data": ((first + num_bytes) // 2, 0x80),
        "last byte of the data": (num_bytes - 1, 0x01),
    }
    whole = ("missing.safetensors", *_REFUSED)
    return [
        Checkpoint("good", GOOD),
        *(Checkpoint(name, GOOD, truncate_to=length) for name, length in cuts.items()),
        *(Checkpoint(n, GOOD, flip_at=at, flip_mask=m) for n, (at, m) in flips.items()),
        *(Checkpoint(name.partition(".")[0].replace("_", " "), name) for name in whole),
    ]


def _behind(data: bytes, text: bytes) -> int:
    return data.index(text) + len(text)


def _tried(case: Checkpoint, session: pockmobile.Session, folder: Path) -> Checkpoint:
    """Returns the case with what `Session.restore` does, and in which words."""
    with tempfile.TemporaryDirectory() as temporary:
        path, source = Path(temporary) / case.file, folder / case.file
        if source.exists():
            path.write_bytes(case.damage(source.read_bytes()))
        try:
            session.restore(path)
        except CheckpointError as error:
            said = str(error).replace(f"{temporary}/", "")
            (verdict, *_) = (v for v, start in _VERDICTS if re.match(start, said))
            return replace(case, verdict=verdict, python=said)
        return replace(case, verdict="restored")


def main() -> int:
    """Writes the fixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    output: Path = parser.parse_args().output
    return run(lambda: write_fixture(output))


if __name__ == "__main__":
    sys.exit(main())
