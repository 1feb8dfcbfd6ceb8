"""Shows what personalisation gives real writers, and how many it takes something from.

Each writer's messages come in the order in which they were sent. The keyboard learns from the
first four fifths as it would on a phone (bursts, gate, roll-back), through its program; the
last fifth measures it beside what it competes with. Results are written as they come:
    python scripts/evaluate_personalisation.py -o results.jsonl
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.keyboard import Burst, Personalizer, Settings, Vocabulary, tokenize
from pockmobile.keyboard.characters import lower
from pockmobile.keyboard.ngrams import ORDER, Ngrams, Probabilities, mixed
from pockmobile.keyboard.predictor import Predictor
from pockmobile.keyboard.settings import Shape
from pockmobile.keyboard.tokenizer import START, UNKNOWN
from pockmobile.models import keyboard_lm
from pockmobile.session import Session
from scripts.keyboard_metrics import predictions
from scripts.keyboard_programs import BATCH, CONTEXT, keyboard_program
from scripts.keyboard_text import sms_writers, split_writers
from scripts.keyboard_typing import Figures, Keyboard, Typed
from scripts.realdata import load_nus_sms, load_self_dialogue

TEST_SHARE: Final = 0.2
BURST_EVERY: Final = 20
"""Messages between two bursts."""
MOST_HELD_OUT: Final = 80
STRIDE: Final = 4
"""Each prediction sees 12 to 15 tokens, as `suggest` does."""
FULL_EPOCHS, FULL_LR = 2, 0.3
NAMES: Final = (
    "base", "n-grams", "base + n-grams", "personal", "personal + n-grams", "full, same batches",
    "full, all text",
)  # fmt: skip
"""What is compared. `personal + n-grams` is what the keyboard suggests; its n-grams have the
messages kept, those of the others all text. Both of the last are eager PyTorch, ungated."""

Step = tuple[Tensor, Tensor, float]
"""Inputs, targets and the learning rate."""
Predict = Callable[[Tensor], Tensor]
"""Maps tokens [rows, context] to the distribution of the next one at each place."""


@dataclass(frozen=True)
class Writer:
    """A writer's messages, oldest first."""

    corpus: str
    name: str
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What was measured on a writer's later messages, by the name of what predicted them.

    `shares` are those of the n-grams beside the base model and beside the personal one.
    """

    corpus: str
    writer: str
    num_messages: int
    num_own_words: int
    outcomes: dict[str, int]
    burst_seconds: float
    shares: tuple[float, float]
    figures: dict[str, Figures]


def main() -> int:
    """Simulates the writers and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, help="default: the shipped one, made first")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--most", type=int, help="writers of each corpus, for a first try")
    parser.add_argument("--messages", type=int, help="of each writer, the first ones")
    parser.add_argument("--plot", type=Path, help="a picture (needs pockmobile[plots])")
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    arguments = parser.parse_args()
    chosen = [
        replace(writer, messages=writer.messages[: arguments.messages])
        for group in (_sms(), _dialogue())
        for writer in group[: arguments.most]
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = arguments.program or Path(folder) / "keyboard.pte"
        if not program.exists():
            keyboard_program().save(program)
        results = _run_all(partial(simulate, program), chosen, arguments.output, arguments.jobs)
    print_table(results)
    if arguments.plot is not None:
        plot(results, arguments.plot)
    return 0


def _sms() -> list[Writer]:
    writers = sms_writers(load_nus_sms())
    return [Writer("nus-sms", name, tuple(own)) for name, own in writers.items()]


def _dialogue() -> list[Writer]:
    turns = list(load_self_dialogue())
    return [
        Writer("self-dialogue", name, tuple(turn.text for turn in turns if turn.writer == name))
        for name in split_writers(turns).test
    ]


def _run_all(
    work: Callable[[Writer], Result],
    writers: Sequence[Writer],
    output: Path,
    num_processes: int,
) -> list[Result]:
    """Runs what `output` does not hold yet, and writes each result there as it comes."""
    known = {(result.corpus, result.writer): result for result in read(output)}
    missing = [writer for writer in writers if (writer.corpus, writer.name) not in known]
    missing.sort(key=lambda writer: -len(writer.messages))
    with (
        ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool,
        output.open("a", encoding="utf-8") as file,
    ):
        futures = [pool.submit(work, writer) for writer in missing]
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            result = future.result()
            known[result.corpus, result.writer] = result
            print(json.dumps(asdict(result)), file=file, flush=True)
    return [known[writer.corpus, writer.name] for writer in writers]


def read(path: Path) -> Iterable[Result]:
    """Yields the results of a file; none if there is no file."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        fields = json.loads(line)
        figures = {name: Figures(**values) for name, values in fields["figures"].items()}
        yield Result(**{**fields, "figures": figures})


def simulate(program: Path, writer: Writer) -> Result:
    """Lets a keyboard learn from a writer, and measures what predicts the later messages."""
    torch.set_num_threads(1)
    num_train = round(len(writer.messages) * (1 - TEST_SHARE))
    with tempfile.TemporaryDirectory() as folder:
        keyboard = Personalizer(program, folder, settings=Settings(save_every=10**6))
        session = keyboard.session
        with patch.object(session, "step", wraps=session.step) as step:
            bursts = _learn(keyboard, writer.messages[:num_train])
        scene = _Scene(writer.messages, num_train, keyboard)
        steps = [
            (*map(torch.from_numpy, call.args[:2]), call.args[2]) for call in step.mock_calls
        ]
        rival = scene.rival(Session(program, threads=1))
        figures = scene.compare(rival, keyboard, steps)
    outcomes = [burst.outcome for burst in bursts]
    seconds = [burst.seconds for burst in bursts if burst.num_steps]
    return Result(
        corpus=writer.corpus,
        writer=writer.name,
        num_messages=len(writer.messages),
        num_own_words=len(scene.own),
        outcomes={outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        burst_seconds=statistics.median(seconds) if seconds else 0.0,
        shares=(rival.share, keyboard.predictor.share),
        figures=figures,
    )


def _learn(keyboard: Personalizer, messages: Sequence[str]) -> list[Burst]:
    bursts = []
    for number, message in enumerate(messages, start=1):
        keyboard.add(message, at=60.0 * number)
        if number % BURST_EVERY == 0:
            bursts.append(keyboard.train())
    return bursts


class _Scene:
    """A writer's text as the shipped model reads it, and as one does that knows their words."""

    def __init__(self, messages: Sequence[str], num_train: int, keyboard: Personalizer) -> None:
        self._vocabulary = vocabulary = Vocabulary.load()
        self.own = {
            keyboard.encode(word)[0]: lower(word) for word in keyboard.learned().own_words
        }
        tokens = [[START, *tokenize(message)] for message in messages]
        self._words = [token for message in tokens for token in message]
        own = {word: number for number, word in self.own.items()}
        self._text = [own.get(word, vocabulary.id(word)) for word in self._words]
        self._plain = vocabulary.encode(self._words)
        sizes = [len(message) for message in tokens]
        held_out = min(MOST_HELD_OUT, num_train // 5)
        self._first_held_out = sum(sizes[: num_train - held_out])
        self._first_test = sum(sizes[:num_train])
        words = {n: lower(vocabulary.shown(n)) for n in range(vocabulary.num_tokens)}
        self._base_words = {n: word for n, word in words.items() if vocabulary.is_word(n)}

    def rival(self, shipped: Session) -> Predictor:
        """Returns the shipped model beside n-grams, which have the share that fits best."""
        shape = Shape.of(shipped.manifest, self._vocabulary)
        found = Predictor(shipped, shape, self._vocabulary)
        held_out = self._text[self._first_held_out : self._first_test]
        known = self._ngrams(self._first_held_out)
        found.fit(held_out, known, Settings().least_ngram_gain)
        return found

    def compare(
        self, rival: Predictor, keyboard: Personalizer, steps: Sequence[Step]
    ) -> dict[str, Figures]:
        """Returns figures by name."""
        base, personal = self._all(_of(rival)), self._all(_of(keyboard.predictor))
        ngrams, kept = self._after(self._ngrams(self._first_test)), self._after(keyboard.ngrams)
        known = Keyboard(self._base_words | self.own)
        of = partial(self._figures, known, self._text)
        plain = self._all(_of(rival), self._plain)
        return {
            "base": self._figures(Keyboard(self._base_words), self._plain, plain),
            "n-grams": of(ngrams),
            "base + n-grams": of(mixed(base, ngrams, rival.share)),
            "personal": of(personal),
            "personal + n-grams": of(mixed(personal, kept, keyboard.predictor.share)),
            "full, same batches": of(self._all(_fine_tuned(steps))),
            "full, all text": of(self._all(_fine_tuned(self._steps()))),
        }

    def _all(self, predict: Predict, text: list[int] | None = None) -> Probabilities:
        """Returns the distribution of each token of the test, float32 [places, tokens]."""
        stream = torch.tensor(self._text if text is None else text)
        found = predictions(predict, stream, self._first_test, CONTEXT, STRIDE)
        return torch.cat([rows for rows, _ in found]).numpy()

    def _ngrams(self, stop: int) -> Ngrams:
        return Ngrams(self._text[:stop], self._vocabulary.num_tokens)

    def _after(self, ngrams: Ngrams) -> Probabilities:
        places = range(self._first_test, len(self._text))
        return np.stack([ngrams.after(self._text[place - ORDER : place]) for place in places])

    def _figures(self, keyboard: Keyboard, text: list[int], found: Probabilities) -> Figures:
        unknown = self._vocabulary.id(UNKNOWN)
        places = range(self._first_test, len(text))
        is_word = [self._vocabulary.is_word(n) or n == unknown or n in self.own for n in text]
        words = tuple(self._words[place] if is_word[place] else None for place in places)
        # The tokens that both texts have: a perplexity of others would not compare.
        is_known = np.ones(self._vocabulary.num_tokens, bool)
        is_known[[unknown, *self.own]] = False
        typed = Typed(np.array(text[self._first_test :]), words)
        return keyboard.figures(found, typed, is_known)

    def _steps(self) -> list[Step]:
        """Returns steps over all text before the test; rows begin elsewhere each epoch."""
        text = torch.tensor(self._text[: self._first_test])
        generator = torch.Generator().manual_seed(0)
        batches: list[Tensor] = []
        for _ in range(FULL_EPOCHS):
            offset = int(torch.randint(CONTEXT, (1,), generator=generator))
            rows = text[offset:].unfold(0, CONTEXT, CONTEXT - 1)
            batches += rows[torch.randperm(len(rows), generator=generator)].split(BATCH)
        rates = [FULL_LR * (1 - number / len(batches)) for number in range(len(batches))]
        return [(rows, rows, rate) for rows, rate in zip(batches, rates, strict=True)]


def _of(predictor: Predictor) -> Predict:
    return lambda rows: torch.from_numpy(predictor.model(rows.numpy()))


def _fine_tuned(steps: Sequence[Step]) -> Predict:
    """Trains the whole model by the same rule as the program, in eager PyTorch."""
    model = keyboard_lm(pretrained=True)
    optimizer = torch.optim.SGD(model.parameters())
    for inputs, targets, rate in steps:
        optimizer.param_groups[0]["lr"] = rate
        logits = model(inputs)[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return lambda rows: model(rows).softmax(-1)


def print_table(results: Sequence[Result]) -> None:
    """Prints medians and quartiles over the writers of each corpus."""
    for corpus in dict.fromkeys(result.corpus for result in results):
        own = [result for result in results if result.corpus == corpus]
        print(f"\n{corpus}: {len(own)} writers; median, and quartiles\n")
        print("| | top-3 | gained on base | lose | top-1 | keystrokes saved | perplexity |")
        print("|---|---|---|---|---|---|---|")
        for name in NAMES:
            print("| " + " | ".join(_cells(name, own)) + " |")


def _cells(name: str, results: Sequence[Result]) -> list[str]:
    figures = [result.figures[name] for result in results]
    gains = [gain(result, name) for result in results]
    return [
        name,
        _spread([one.top3 for one in figures], "{:.1%}"),
        _spread(gains, "{:+.0%}"),
        f"{sum(value < 0 for value in gains)} of {len(gains)}",
        _spread([one.top1 for one in figures], "{:.1%}"),
        _spread([one.saved for one in figures], "{:.1%}"),
        _spread([one.perplexity for one in figures], "{:.0f}"),
    ]


def gain(result: Result, name: str) -> float:
    """Returns the relative gain in top-3 accuracy over the shipped model."""
    return result.figures[name].top3 / result.figures["base"].top3 - 1


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{form.format(middle)} ({form.format(low)} to {form.format(high)})"


def plot(results: Sequence[Result], path: Path) -> None:
    """Draws each writer's gain in top-3 accuracy, best first."""
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("error: matplotlib is missing; install pockmobile[plots], or leave out --plot")
    corpora = list(dict.fromkeys(result.corpus for result in results))
    figure, axes = pyplot.subplots(
        1, len(corpora), figsize=(5 * len(corpora), 4), squeeze=False
    )
    for axis, corpus in zip(axes[0], corpora, strict=True):
        for name in ("base + n-grams", "personal", "personal + n-grams"):
            own = [gain(result, name) for result in results if result.corpus == corpus]
            axis.plot(sorted(own, reverse=True), marker="o", markersize=3, label=name)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=corpus, xlabel="writers", ylabel="gain in top-3 accuracy")
        axis.yaxis.set_major_formatter("{x:.0%}")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
