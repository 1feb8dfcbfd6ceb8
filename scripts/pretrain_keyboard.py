"""Pretrains the keyboard's language model on the Self-dialogue corpus (Fainberg et al. 2018).

Writers kept out of training (`scripts/keyboard_text.py`) measure it. Two cores take about
an hour; what was reached is written every few minutes, and a run that was stopped goes on:
    python scripts/pretrain_keyboard.py -o pretrained
"""

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.keyboard import NUM_OWN, Vocabulary, tokenize
from pockmobile.models import keyboard_lm
from scripts.keyboard_metrics import CONTEXT, NextWord, next_word, total
from scripts.keyboard_text import split_writers
from scripts.realdata import Turn, load_self_dialogue

ROWS: Final = 64
WEIGHT_DECAY: Final = 0.01
WARM_UP: Final = 200
"""Steps in which the learning rate rises."""


def main() -> int:
    """Trains, measures and writes `weights.safetensors` and `figures.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    arguments.output.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.load()
    turns = list(load_self_dialogue())
    writers = split_writers(turns)
    stream = torch.cat(list(_streams(turns, writers.train, vocabulary, owns=True)))
    kept_out = list(_streams(turns, writers.validation, vocabulary, owns=False))
    model = keyboard_lm()
    started = time.perf_counter()
    _train(model, stream, arguments)
    figures = {
        "validation": _figures(model, kept_out, vocabulary),
        "test": _figures(
            model, list(_streams(turns, writers.test, vocabulary, owns=False)), vocabulary
        ),
        "minutes": (time.perf_counter() - started) / 60,
        "tokens": len(stream),
        "epochs": arguments.epochs,
    }
    _write(model, arguments.output, figures)
    return 0


def _streams(
    turns: Iterable[Turn], writers: Iterable[str], vocabulary: Vocabulary, *, owns: bool
) -> Iterator[Tensor]:
    """Yields each writer's text as tokens; `owns` gives words that they repeat slots."""
    wanted, rng, start = set(writers), random.Random(0), vocabulary.id("<s>")
    chosen = (turn for turn in turns if turn.writer in wanted)
    for _, texts in groupby(chosen, lambda turn: turn.writer):
        ids: list[int] = []
        for _, conversation in groupby(texts, lambda turn: turn.conversation):
            tokens = [tokenize(turn.text) for turn in conversation]
            own = _own_words(tokens, vocabulary, rng) if owns else {}
            for turn_tokens in tokens:
                ids += [start, *vocabulary.encode(turn_tokens, own)]
        yield torch.tensor(ids)


def _own_words(
    tokens: Iterable[list[str]], vocabulary: Vocabulary, rng: random.Random
) -> dict[str, int]:
    """Gives slots drawn at random to unknown words that a conversation repeats.

    So the slots learn what a writer's own words have in common: one seen is seen again.
    """
    unknown = vocabulary.id("<unk>")
    counts = Counter(word for turn in tokens for word in turn if vocabulary.id(word) == unknown)
    repeated = [word for word, count in counts.items() if count > 1]
    slots = rng.sample(range(NUM_OWN), min(len(repeated), NUM_OWN))
    return dict(zip(repeated, slots, strict=False))


def _train(model: nn.Module, stream: Tensor, arguments: argparse.Namespace) -> None:
    checkpoint = arguments.output / "training.pt"
    num_steps = int(arguments.epochs * len(stream) / (ROWS * CONTEXT))
    optimizer = torch.optim.AdamW(
        model.parameters(), arguments.lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    first = 0
    if checkpoint.exists():
        first, weights, slots = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(weights)
        optimizer.load_state_dict(slots)
    bar = tqdm(range(first, num_steps), initial=first, total=num_steps, disable=None)
    mean = math.nan
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * _schedule(step, num_steps)
        loss = _loss(model, _batch(stream, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if math.isnan(mean) else 0.99 * mean + 0.01 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        if step % 500 == 499:
            state = step + 1, model.state_dict(), optimizer.state_dict()
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            print(f"step {step + 1} of {num_steps}, loss {mean:.3f}", file=sys.stderr)


def _schedule(step: int, num_steps: int) -> float:
    """Rises linearly, then falls to a twentieth by half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.475 * (1 + math.cos(math.pi * step / num_steps))


def _batch(stream: Tensor, step: int) -> Tensor:
    """Draws rows that start anywhere; one more token than the context."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(stream) - CONTEXT, (ROWS, 1), generator=generator)
    return stream[starts + torch.arange(CONTEXT + 1)]


def _loss(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _figures(
    model: nn.Module, streams: Iterable[Tensor], vocabulary: Vocabulary
) -> dict[str, float]:
    found = total(measure(model, stream, vocabulary) for stream in streams)
    return {"top1": found.top1, "top3": found.top3, "perplexity": found.perplexity}


def measure(model: nn.Module, stream: Tensor, vocabulary: Vocabulary) -> NextWord:
    """Measures a model on one writer's text."""
    words = torch.tensor([vocabulary.is_word(token) for token in range(vocabulary.num_tokens)])
    counted = words.clone()
    counted[vocabulary.id("<unk>")] = True
    return next_word(model, stream, is_suggestable=words, is_counted=counted)


def _write(model: nn.Module, folder: Path, figures: dict[str, object]) -> None:
    tensors = {
        name: value.detach().half().contiguous() for name, value in model.named_parameters()
    }
    save_file(tensors, folder / "weights.safetensors")
    text = json.dumps(figures, indent=2)
    (folder / "figures.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
