"""Loaders of real weights and data, which lie beside the checkout and are never committed.

They are read from `../shared/data`, or from the folder that the environment variable
POCKMOBILE_DATA names. Every loader raises `DataMissing` where its files are not there, so
that tests can skip. The licences stand in each folder's NOTICE.md.
"""

import gzip
import io
import json
import os
import random
import struct
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pockmobile.models.folded_mobilenet import BlockSpec, ConvSpec, FoldedMobileNet
from pockmobile.models.llama import Llama, interleaved_to_halves
from pockmobile.models.mobilenet_v1 import MobileNetV1
from scripts.tokenizer import Tokenizer

SELF_DIALOGUE_EXCLUDED: Final = ("w2052", "w1041")
"""Writers who repeat many of their long turns: no use as users."""
NUS_SMS_EXCLUDED: Final = ("0",)
"""The identifier that stands for all unidentified writers of 2003-4."""
MCUNET_NAMES: Final = ("mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3")

_SOURCES: Final = {
    "mcunet-int8": "github.com/mit-han-lab/tiny-training",
    "mobilenetv1-0.25": "github.com/biubug6/Pytorch_Retinaface",
    "mobilenetv2-1.0": "github.com/google-coral/test_data",
    "nus-sms": "github.com/kite1988/nus-sms-corpus",
    "self-dialogue": "github.com/jfainberg/self_dialogue_corpus",
    "stories260K": "github.com/ytmytm/llama2.c64",
    "trashnet": "github.com/garythung/trashnet",
}
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class DataMissing(Exception):  # noqa: N818 - not an error in a test, but a reason to skip
    """Real data or weights are not on this machine; the message says which and what to do."""


def data_path(relative: str) -> Path:
    """Returns the path of a file or folder of the real data.

    Raises:
        DataMissing: it is not there.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("POCKMOBILE_DATA") or beside) / relative
    if not path.exists():
        folder = relative.partition("/")[0]
        raise DataMissing(
            f"real data is missing: {path}; put the folder {folder} (made from "
            f"{_SOURCES[folder]}) into ../shared/data beside the checkout, or set "
            "POCKMOBILE_DATA to the folder that holds it"
        )
    return path


# stories260K: a Llama and its tokenizer.


def load_stories260k() -> tuple[Llama, Tokenizer]:
    """Returns Karpathy's stories260K, in evaluation mode, and its tokenizer (512 tokens)."""
    data = data_path("stories260K/stories260K.bin").read_bytes()
    width, hidden, num_blocks, num_heads, num_key_heads, num_tokens, context = struct.unpack(
        "<7i", data[:28]
    )
    model = Llama(
        num_tokens=num_tokens,
        context=context,
        width=width,
        hidden=hidden,
        num_blocks=num_blocks,
        num_heads=num_heads,
        num_key_heads=num_key_heads,
        is_tied=True,
    )
    values = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy())
    model.load_state_dict(_stories_state(values, model), strict=True)
    return model.eval(), load_stories_tokenizer(num_tokens)


def _stories_state(values: Tensor, model: Llama) -> dict[str, Tensor]:
    """Cuts llama2.c's tensors, each stacked over the blocks, and names them as we do."""
    expected = model.state_dict()
    stacked = (
        "attention_norm",
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp_norm",
        "mlp.gate",
        "mlp.down",
        "mlp.up",
    )
    blocks = range(len(model.blocks))
    names = [f"blocks.{block}.{name}.weight" for name in stacked for block in blocks]
    state: dict[str, Tensor] = {}
    start = 0
    for name in ("embedding.weight", *names, "norm.weight"):
        stop = start + expected[name].numel()
        state[name] = values[start:stop].reshape(expected[name].shape)
        start = stop
        if name.endswith((".query.weight", ".key.weight")):
            head_width = 2 * model.cosine.shape[1]
            state[name] = interleaved_to_halves(state[name], head_width=head_width)
    state["head.weight"] = state["embedding.weight"]
    return state


def load_stories_tokenizer(num_tokens: int = 512) -> Tokenizer:
    """Returns the tokenizer of stories260K alone."""
    data = data_path("stories260K/tok512.bin").read_bytes()
    pieces: list[bytes] = []
    scores: list[float] = []
    position = 4  # after the length of the longest piece
    for _ in range(num_tokens):
        score, length = struct.unpack_from("<fi", data, position)
        position += 8
        pieces.append(data[position : position + length])
        scores.append(score)
        position += length
    return Tokenizer(pieces, scores)


# Image classifiers, and how each wants its images.


def imagenet_images(images: Tensor) -> Tensor:
    """Turns uint8 images [B, 3, H, W] into float32 with ImageNet's mean and deviation."""
    mean = torch.tensor(_IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(_IMAGENET_STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def signed_images(images: Tensor) -> Tensor:
    """Turns uint8 images [B, 3, H, W] into float32 from -1 to 1."""
    return images.float() / 127.5 - 1


def load_mobilenet_v1_025() -> MobileNetV1:
    """Returns MobileNetV1 x0.25 trained on ImageNet, in evaluation mode.

    It takes `imagenet_images` of 224 x 224 and has BatchNorm; top-1 is 46.8 %.
    """
    path = data_path("mobilenetv1-0.25/mobilenetv1_0.25_state_dict.pt")
    model = MobileNetV1(width=0.25)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return model.eval()


def load_mcunet(name: str = "mbv2-w0.35") -> FoldedMobileNet:
    """Returns a network of tiny-training trained on ImageNet, dequantised to float32.

    It takes `signed_images` of 128 x 128. BatchNorm is folded.

    Args:
        name: one of `MCUNET_NAMES`.
    """
    if name not in MCUNET_NAMES:
        raise ValueError(f"unknown network {name!r}: expected one of {', '.join(MCUNET_NAMES)}")
    options = json.loads(data_path(f"mcunet-int8/{name}.json").read_text(encoding="utf-8"))
    arrays = np.load(data_path(f"mcunet-int8/{name}.npz"), allow_pickle=False)
    convs = {key.removesuffix(".kernel_size") for key in options if key.endswith("kernel_size")}
    specs = {conv: _int8_spec(options, conv) for conv in convs}
    num_blocks = 1 + max(int(conv.split(".")[1]) for conv in convs if "." in conv)
    blocks = [
        BlockSpec(
            specs.get(f"blocks.{index}.pointwise1"),
            specs[f"blocks.{index}.depthwise"],
            specs[f"blocks.{index}.pointwise2"],
            f"blocks.{index}.residual.params.y_scale" in options,
        )
        for index in range(num_blocks)
    ]
    num_classes = options["classifier.out_channel"]
    model = FoldedMobileNet(specs["first_conv"], blocks, last=None, num_classes=num_classes)
    state: dict[str, Tensor] = {}
    for conv in convs:
        scales = arrays[f"{conv}.params.w_scales"]
        weight = arrays[f"{conv}.params.weight"] * scales[:, None, None, None]
        bias = arrays[f"{conv}.params.bias"] * scales * options[f"{conv}.params.x_scale"]
        block, _, layer = conv.rpartition(".")
        name = ".".join(filter(None, (block, _MCUNET_LAYERS[layer])))
        state |= _folded_layer(name, weight, bias)
    model.load_state_dict(state, strict=True)
    return model.eval()


def load_mobilenet_v2_10() -> FoldedMobileNet:
    """Returns MobileNetV2 1.0 trained on ImageNet, converted from TensorFlow.

    It takes `signed_images` of 224 x 224 and has 1001 classes, of which class 0 is the
    background. BatchNorm is folded.
    """
    stem = "mobilenetv2-1.0/tf2_mobilenet_v2_1.0_224_ptq"
    graph = json.loads(data_path(f"{stem}.graph.json").read_text(encoding="utf-8"))
    arrays = np.load(data_path(f"{stem}.float32.npz"), allow_pickle=False)
    operators = [op for op in graph["ops"] if "layer" in op]
    specs = [_tflite_spec(op, arrays[f"{op['layer']}.weight"]) for op in operators]
    blocks = [BlockSpec(None, specs[1], specs[2], has_shortcut=False)]
    names = ["first.conv", "blocks.0.depthwise.conv", "blocks.0.project.conv"]
    for index in range(3, len(specs) - 2, 3):
        expand, depthwise, project = specs[index : index + 3]
        has_shortcut = depthwise.stride == 1 and expand.num_inputs == project.num_outputs
        names += [
            f"blocks.{len(blocks)}.{part}.conv" for part in ("expand", "depthwise", "project")
        ]
        blocks.append(BlockSpec(expand, depthwise, project, has_shortcut=has_shortcut))
    model = FoldedMobileNet(specs[0], blocks, last=specs[-2], num_classes=specs[-1].num_outputs)
    state: dict[str, Tensor] = {}
    for op, name in zip(operators, [*names, "last.conv", "head"], strict=True):
        layer = op["layer"]
        state |= _folded_layer(name, arrays[f"{layer}.weight"], arrays[f"{layer}.bias"])
    model.load_state_dict(state, strict=True)
    return model.eval()


def _tflite_spec(operator: Mapping[str, Any], weight: np.ndarray) -> ConvSpec:
    is_depthwise = operator["op"] == "DEPTHWISE_CONV_2D"
    num_outputs, num_inputs, kernel, _ = weight.shape
    is_bounded = operator["act"] == "relu6"
    return ConvSpec(
        num_inputs=num_outputs if is_depthwise else num_inputs,
        num_outputs=num_outputs,
        kernel=kernel,
        stride=operator["stride"],
        groups=num_outputs if is_depthwise else 1,
        low=0.0 if is_bounded else None,
        high=6.0 if is_bounded else None,
        is_same_stride=operator["stride"] == 2,
    )


_MCUNET_LAYERS: Final = {
    "first_conv": "first.conv",
    "pointwise1": "expand.conv",
    "depthwise": "depthwise.conv",
    "pointwise2": "project.conv",
    "classifier": "head",
}
"""The last part of a layer's name there -> its name here."""


def _int8_spec(options: Mapping[str, Any], conv: str) -> ConvSpec:
    """Describes a layer; the bounds are those of int8: ReLU6 where the zero is -128."""
    zero, scale = options[f"{conv}.params.y_zero"], options[f"{conv}.params.y_scale"]
    return ConvSpec(
        num_inputs=options[f"{conv}.in_channel"],
        num_outputs=options[f"{conv}.out_channel"],
        kernel=options[f"{conv}.kernel_size"][0],
        stride=options[f"{conv}.stride"],
        groups=options[f"{conv}.groups"],
        low=(-128 - zero) * scale,
        high=(127 - zero) * scale,
    )


def _folded_layer(name: str, weight: np.ndarray, bias: np.ndarray) -> dict[str, Tensor]:
    if name == "head":
        weight = weight[:, :, 0, 0]
    return {
        f"{name}.weight": torch.from_numpy(weight.astype(np.float32)),
        f"{name}.bias": torch.from_numpy(bias.astype(np.float32)),
    }


# Photographs.


@final
@dataclass(frozen=True)
class ImageSplit:
    """Images, uint8 [N, 3, size, size], and labels, int64 [N], to train and to test on."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


@lru_cache(maxsize=2)
def load_trashnet(size: int, *, test_share: float = 0.2, seed: int = 0) -> ImageSplit:
    """Returns TrashNet (2,527 photographs of refuse in 6 classes), kept in memory.

    The split is the same for the same seed, has the same share of each class, and does not
    depend on the size. Images are squeezed from 4:3 to a square. Do not write to the tensors.

    Args:
        size: side of the images, in pixels.
        test_share: part of each class that is kept for the test.
        seed: of the split.
    """
    path = data_path("trashnet/trashnet.zip")
    with zipfile.ZipFile(path) as archive:
        groups: dict[str, list[str]] = defaultdict(list)
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            groups[name.split("/")[0]].append(name)
        classes = tuple(sorted(groups))
        train: list[tuple[str, int]] = []
        test: list[tuple[str, int]] = []
        generator = random.Random(seed)
        for label, name in enumerate(classes):
            files = groups[name]
            generator.shuffle(files)
            num_test = round(test_share * len(files))
            test += [(file, label) for file in files[:num_test]]
            train += [(file, label) for file in files[num_test:]]
        return ImageSplit(
            *_read_images(archive, train, size), *_read_images(archive, test, size), classes
        )


def _read_images(
    archive: zipfile.ZipFile, files: list[tuple[str, int]], size: int
) -> tuple[Tensor, Tensor]:
    images = np.empty((len(files), 3, size, size), np.uint8)
    for index, (name, _) in enumerate(files):
        with Image.open(io.BytesIO(archive.read(name))) as image:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        images[index] = np.asarray(resized).transpose(2, 0, 1)
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


# Text.


class Turn(NamedTuple):
    """One line of a conversation; `writer` is a pseudonym."""

    writer: str
    topic: str
    conversation: str
    turn: int
    text: str


class Message(NamedTuple):
    """One SMS; `time` is as the corpus gives it, or `unknown`."""

    writer: str
    time: str
    text: str


def load_self_dialogue() -> Iterator[Turn]:
    """Yields the 373,008 turns of the Self-dialogue corpus, by writer."""
    path = data_path("self-dialogue/self_dialogue.tsv.gz")
    return (
        Turn(writer, topic, conversation, int(turn), text)
        for writer, topic, conversation, turn, text in _read_tsv(path, num_columns=5)
    )


def load_nus_sms() -> Iterator[Message]:
    """Yields the 29,806 messages of the NUS SMS corpus; for evaluation only."""
    path = data_path("nus-sms/nus_sms_dev.tsv.gz")
    return (Message(*columns) for columns in _read_tsv(path, num_columns=3))


def _read_tsv(path: Path, *, num_columns: int) -> Iterator[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.rstrip("\n").split("\t", num_columns - 1)
