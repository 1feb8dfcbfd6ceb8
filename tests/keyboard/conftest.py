"""A small program and vocabulary on which the keyboard's loop runs in a moment."""

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import pockmobile
from pockmobile.keyboard import FIRST_OWN, NUM_OWN, Personalizer, Settings, Vocabulary
from pockmobile.keyboard.vocabulary import CLASSES
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.session import Session

NUM_TOKENS = 400
WORDS = tuple(a + b + c for a in "bdfgklmn" for b in "aeiou" for c in "krst")[
    : NUM_TOKENS - 272
]

Open = Callable[..., Personalizer]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    reserved = (f"<reserved:{number}>" for number in range(len(CLASSES), FIRST_OWN))
    slots = (f"<own:{number}>" for number in range(NUM_OWN))
    return Vocabulary((*CLASSES, *reserved, *slots, *WORDS))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = TransformerLM(
        num_tokens=NUM_TOKENS, context=16, width=16, num_blocks=1, num_heads=2, head_bias=True
    )
    path = tmp_path_factory.mktemp("keyboard") / "keyboard.pte"
    pockmobile.compile(
        model,
        (torch.zeros(4, 16, dtype=torch.int64),),
        loss="next_token",
        optimizer=pockmobile.AdamW(),
        predict_batch_size=1,
    ).save(path)
    return path


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(
        num_recent=60,
        num_older=40,
        held_out_part=5,
        least_held_out=40,
        num_steps=6,
        lr=1e-2,
        least_gain=-100.0,
        save_every=1000,
    )


@pytest.fixture
def open_keyboard(
    program: Path, vocabulary: Vocabulary, settings: Settings, tmp_path: Path
) -> Open:
    """Opens the keyboard of the test's folder; `settings` may be others."""

    def keyboard(settings: Settings = settings, folder: Path = tmp_path) -> Personalizer:
        return Personalizer(program, folder, vocabulary=vocabulary, settings=settings)

    return keyboard


@pytest.fixture
def messages() -> Iterator[str]:
    """Messages without end, of phrases in which each word tells the next."""
    return _messages()


def _messages() -> Iterator[str]:
    rng = random.Random(0)
    phrases = [" ".join(WORDS[3 * number : 3 * number + 3]) for number in range(12)]
    while True:
        yield " ".join(rng.choice(phrases) for _ in range(3))


def digest(session: Session) -> str:
    """Returns what tells one state from another."""
    found = hashlib.sha256()
    for tensor in session.state.values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()
