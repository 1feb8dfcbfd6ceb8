"""The loaders of real weights and data; skipped where these are not on the machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import realdata
from scripts.tokenizer import Tokenizer

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
    "park. One day, she saw a big, red ball."
)
"""The beginning of the text that llama2.c's own test expects of stories260K."""


@contextmanager
def skip_where_missing() -> Iterator[None]:
    try:
        yield
    except realdata.DataMissing as missing:
        pytest.skip(str(missing))


LOADERS: list[Callable[[], Any]] = [
    realdata.load_stories260k,
    realdata.load_stories_tokenizer,
    realdata.load_mobilenet_v1_025,
    realdata.load_mobilenet_v2_10,
    realdata.load_mcunet,
    lambda: realdata.load_trashnet(8, seed=1),
    realdata.load_self_dialogue,
    realdata.load_nus_sms,
]


@pytest.mark.parametrize("load", LOADERS)
def test_missing_data_is_named_with_what_to_do(
    load: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKMOBILE_DATA", str(tmp_path))
    with pytest.raises(realdata.DataMissing, match=r"made from github\.com/.*POCKMOBILE_DATA"):
        load()


def test_an_unknown_mcunet_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'x': expected one of mbv2-w0\.35, "):
        realdata.load_mcunet("x")


def test_the_tokenizer_merges_the_best_scored_neighbours_first() -> None:
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    words = [b" ", b"a", b"b", b"ab", b"ba", b" a"]
    scores = [0.0] * len(pieces) + [-9.0, -9.0, -9.0, -3.0, -2.0, -4.0]
    tokenizer = Tokenizer([*pieces, *words], scores)
    first = len(pieces)
    assert tokenizer.encode("aba") == [1, first + 5, first + 4]
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("é")[2:] == [3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("abé")) == "abé"


def test_stories260k_tells_its_story() -> None:
    with skip_where_missing():
        model, tokenizer = realdata.load_stories260k()
    ids = tokenizer.encode("")
    with torch.no_grad():
        for _ in range(len(tokenizer.encode(STORY)) - 1):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert tokenizer.decode(ids) == STORY
    assert tokenizer.encode(STORY) == ids


@pytest.mark.parametrize(
    ("load", "num_parameters", "size", "num_classes"),
    [
        (realdata.load_mobilenet_v1_025, 470_072, 224, 1000),
        (realdata.load_mobilenet_v2_10, 3_489_097, 224, 1001),
        (realdata.load_mcunet, 357_448, 128, 1000),
        (lambda: realdata.load_mcunet("mcunet-5fps"), 630_224, 128, 1000),
        (lambda: realdata.load_mcunet("proxyless-w0.3"), 423_232, 128, 1000),
    ],
)
def test_image_networks_load(
    load: Callable[[], torch.nn.Module], num_parameters: int, size: int, num_classes: int
) -> None:
    with skip_where_missing():
        model = load()
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert not model.training
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, size, size))
    assert logits.shape == (1, num_classes)
    assert logits.isfinite().all()


def test_trashnet_is_split_the_same_way_each_time_and_by_class() -> None:
    with skip_where_missing():
        split = realdata.load_trashnet(16)
    assert split.classes == ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    assert split.train_images.shape == (2022, 3, 16, 16)
    assert split.train_images.dtype == torch.uint8
    assert split.test_labels.bincount().tolist() == [81, 100, 82, 119, 96, 27]
    assert split.train_labels.bincount().tolist() == [322, 401, 328, 475, 386, 110]
    assert realdata.load_trashnet(16) is split
    smaller, other = realdata.load_trashnet(8), realdata.load_trashnet(8, seed=1)
    brightness = split.test_images.float().mean((1, 2, 3))
    torch.testing.assert_close(
        smaller.test_images.float().mean((1, 2, 3)), brightness, atol=3.0, rtol=0.0
    )
    assert not torch.equal(smaller.test_images, other.test_images)


def test_images_are_normalised_as_the_networks_expect() -> None:
    black, white = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.full((1, 3, 2, 2), 255)
    assert realdata.signed_images(black).max() == -1
    assert realdata.signed_images(white).min() == 1
    shifted = realdata.imagenet_images(black)[0, :, 0, 0]
    torch.testing.assert_close(
        shifted, torch.tensor([-2.1179, -2.0357, -1.8044]), atol=1e-4, rtol=0
    )


def test_text_is_read_line_by_line() -> None:
    with skip_where_missing():
        turns, messages = realdata.load_self_dialogue(), realdata.load_nus_sms()
    first = next(turns)
    assert (first.writer, first.topic, first.turn) == ("w0000", "action", 0)
    assert first.text == "have you heard of the upcoming black panther movie?"
    assert all(message.text for message in islice(messages, 100))
