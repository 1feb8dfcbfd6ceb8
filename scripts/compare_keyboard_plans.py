"""Compares update plans of the keyboard's model on writers of the NUS SMS corpus.

Each writer's earlier messages train the pretrained model, through its programs; the last
fifth measures it. Ten writers are for the table; some others choose each plan's learning
rate. Results are written as they come:
    python scripts/compare_keyboard_plans.py -o plans.jsonl
"""

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.capture import export_forward
from pockmobile.keyboard import FIRST_OWN, NUM_OWN, Vocabulary, tokenize
from pockmobile.keyboard.tokenizer import START, UNKNOWN
from pockmobile.models import keyboard_lm
from scripts import plan_table
from scripts.keyboard_metrics import NextWord, next_word
from scripts.keyboard_programs import BATCH, CONTEXT, PLAN, keyboard_program
from scripts.keyboard_text import sms_writers
from scripts.plan_table import Key, Run
from scripts.realdata import load_nus_sms

HAND: Final = "sparse:2:2"
NUM_WRITERS, NUM_TRIAL_WRITERS = 10, 3
TEST_SHARE: Final = 0.2
LEAST_USES: Final = 2
"""An unknown word that a writer used so often has a slot of its own."""


@dataclass(frozen=True)
class Text:
    """A writer's messages as tokens, int64 [length]; the test begins at `first_test`."""

    stream: Tensor
    first_test: int
    num_own: int


def main() -> int:
    """Exports, trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=PLAN, help="the plan found")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--messages", type=int, default=600, help="of each writer, the first")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    arguments = parser.parse_args()
    plan_table.one_thread()
    output: Path = arguments.output
    folder = output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(BATCH, CONTEXT, dtype=torch.int64)
    forward = export_forward(keyboard_lm(pretrained=True), (example,))
    plans = plan_table.equal_memory_plans(
        forward, HAND, arguments.plan, partial(_export, folder)
    )
    work = partial(_run, plans, arguments.epochs, arguments.messages)
    names = sorted(sms_writers(load_nus_sms()))
    chosen = sorted(random.Random(0).sample(names, NUM_WRITERS))
    others = [name for name in names if name not in chosen][:NUM_TRIAL_WRITERS]
    trials = [Key(plan, w, lr) for plan in plans for lr in arguments.lr for w in others]
    tried = plan_table.run_all(work, trials, output, arguments.jobs)
    rates = plan_table.best_rates(tried, "top-3")
    keys = [Key(plan, writer, rates[plan]) for writer in chosen for plan in plans]
    runs = plan_table.run_all(work, keys, output, arguments.jobs)
    plan_table.print_table(runs, ["top-1", "top-3", "top-1 before", "top-3 before", "gained"])
    return 0


def _export(folder: Path, label: str, plan: str) -> Path:
    path = folder / f"{label.replace(':', '-')}.pte"
    if not path.exists():
        keyboard_program(plan=plan).save(path)
    return path


def _run(paths: dict[str, Path], epochs: int, num_messages: int, key: Key) -> Run:
    plan_table.one_thread()
    text = text_of(tuple(sms_writers(load_nus_sms())[key.case][:num_messages]))
    session = pockmobile.Session(paths[key.plan], threads=1)
    before = measure(session, text)
    rows = training_rows(text.stream[: text.first_test], epochs)
    seconds = plan_table.train(session, lambda tokens: (tokens, tokens), rows, key.lr)
    after = measure(session, text)
    metrics = {
        "top-1": after.top1,
        "top-3": after.top3,
        "top-1 before": before.top1,
        "top-3 before": before.top3,
        "gained": after.top3 / before.top3 - 1,
        "loss": after.loss,
        "loss before": before.loss,
    }
    return plan_table.run_of(key, session, paths[key.plan], metrics, seconds)


def text_of(messages: tuple[str, ...]) -> Text:
    """Returns a writer's messages, oldest first, with slots for their own words."""
    vocabulary = _vocabulary()
    tokens = [tokenize(message) for message in messages]
    num_train = round(len(tokens) * (1 - TEST_SHARE))
    unknown = vocabulary.id(UNKNOWN)
    counts = Counter(
        word
        for message in tokens[:num_train]
        for word in message
        if vocabulary.id(word) == unknown and word != UNKNOWN
    )
    repeated = [word for word, count in counts.most_common(NUM_OWN) if count >= LEAST_USES]
    own = {word: slot for slot, word in enumerate(repeated)}
    start = vocabulary.id(START)
    ids = [[start, *vocabulary.encode(message, own)] for message in tokens]
    first_test = sum(map(len, ids[:num_train]))
    stream = torch.tensor([number for message in ids for number in message])
    return Text(stream, first_test, len(own))


@lru_cache(maxsize=1)
def _vocabulary() -> Vocabulary:
    return Vocabulary.load()


def training_rows(stream: Tensor, epochs: int) -> list[Tensor]:
    """Returns batches of rows, in another order each epoch, that start elsewhere each time."""
    generator = torch.Generator().manual_seed(0)
    batches: list[Tensor] = []
    for _ in range(epochs):
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        rows = stream[offset:].unfold(0, CONTEXT, CONTEXT - 1)
        order = torch.randperm(len(rows), generator=generator)
        batches += [rows[numbers] for numbers in order.split(BATCH)]
    return batches


def measure(session: pockmobile.Session, text: Text) -> NextWord:
    """Measures a program on the messages that it was not trained on."""
    vocabulary = _vocabulary()
    suggestable = torch.tensor([vocabulary.is_word(n) for n in range(vocabulary.num_tokens)])
    suggestable[FIRST_OWN : FIRST_OWN + text.num_own] = True
    counted = suggestable.clone()
    counted[vocabulary.id(UNKNOWN)] = True

    def predict(rows: Tensor) -> Tensor:
        outputs = [session.predict(row) for row in rows.split(1)]
        return torch.cat([output for output in outputs if isinstance(output, Tensor)])

    return next_word(
        predict,
        text.stream,
        is_suggestable=suggestable,
        is_counted=counted,
        first=text.first_test,
        context=CONTEXT,
    )


if __name__ == "__main__":
    sys.exit(main())
