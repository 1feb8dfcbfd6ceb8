"""The families of models that people fine-tune, small and at random weights.

Shared by `tests/test_families.py` and `scripts/coverage.py`. All are those of `transformers`,
made from configurations: nothing is downloaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers as hf
from torch import Tensor, nn

from tests.layer_cases import Subject, initialised
from tests.losses import ROWS, Criterion

PLANS: Final = ("full", "sparse:1:1", "lora:4")
"""One of each kind of plan."""

Draw = Callable[[torch.Generator], Tensor]
NUM_CLASSES: Final = 3
_NUM_TOKENS: Final = 64
_LENGTH: Final = 8


@dataclass(frozen=True)
class Family:
    """A model, what draws each of its inputs by name, and its loss.

    `predicted_rows` of a batch are predicted at once.
    """

    make: Callable[[], nn.Module]
    inputs: Mapping[str, Draw]
    criterion: Criterion
    result: str = "logits"
    predicted_rows: int = 1


class Named(nn.Module):
    """A model called by the names of its inputs, of whose results one counts."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], result: str) -> None:
        super().__init__()
        self.model = model
        self._names, self._result = names, result

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the result that counts."""
        results = self.model(**dict(zip(self._names, inputs, strict=True)))
        found: Tensor = getattr(results, self._result)
        return found


def _tokens(length: int = _LENGTH) -> Draw:
    return lambda g: torch.randint(3, _NUM_TOKENS, (ROWS, length), generator=g)


def _mask(generator: torch.Generator) -> Tensor:
    """Returns which tokens count: the first few of each row."""
    lengths = torch.randint(2, _LENGTH + 1, (ROWS, 1), generator=generator)
    return (torch.arange(_LENGTH) < lengths).to(torch.int64)


def _images(size: int) -> Draw:
    return lambda g: torch.randn(ROWS, 3, size, size, generator=g)


def _labels(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(NUM_CLASSES, (ROWS,), generator=generator),)


def _next(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(_NUM_TOKENS, (ROWS, _LENGTH), generator=generator),)


def _pairs(_: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.arange(ROWS),)


_CLASSES: Final = Criterion("cross_entropy", (NUM_CLASSES,), _labels)
_WORDS: Final = Criterion("next_token", (_LENGTH, _NUM_TOKENS), _next)
_TEXT: Final[Mapping[str, Any]] = {
    "vocab_size": _NUM_TOKENS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
_DECODER: Final[Mapping[str, Any]] = {**_TEXT, "num_key_value_heads": 1, "use_cache": False}
_PICTURE: Final[Mapping[str, Any]] = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _text(model: type[nn.Module], config: type, **settings: Any) -> Family:
    make = lambda: model(config(**settings, num_labels=NUM_CLASSES))  # noqa: E731
    return Family(make, {"input_ids": _tokens(), "attention_mask": _mask}, _CLASSES)


def _language(model: type[nn.Module], config: type, **settings: Any) -> Family:
    return Family(lambda: model(config(**settings)), {"input_ids": _tokens()}, _WORDS)


def _vision(model: type[nn.Module], config: type, size: int, **settings: Any) -> Family:
    make = lambda: model(config(**settings, num_labels=NUM_CLASSES))  # noqa: E731
    return Family(make, {"pixel_values": _images(size)}, _CLASSES)


FAMILIES: Final[Mapping[str, Family]] = {
    "bert": _text(hf.BertForSequenceClassification, hf.BertConfig, **_TEXT),
    "distilbert": _text(
        hf.DistilBertForSequenceClassification, hf.DistilBertConfig,
        vocab_size=_NUM_TOKENS, dim=16, hidden_dim=24, n_layers=2, n_heads=2,
        max_position_embeddings=16,
    ),
    "roberta": _text(hf.RobertaForSequenceClassification, hf.RobertaConfig, **_TEXT),
    "albert": _text(
        hf.AlbertForSequenceClassification, hf.AlbertConfig, **_TEXT, embedding_size=8
    ),
    "gpt2": _language(
        hf.GPT2LMHeadModel, hf.GPT2Config, vocab_size=_NUM_TOKENS, n_positions=16, n_embd=16,
        n_layer=2, n_head=2, use_cache=False,
    ),
    "llama": _language(hf.LlamaForCausalLM, hf.LlamaConfig, **_DECODER),
    "qwen2": _language(hf.Qwen2ForCausalLM, hf.Qwen2Config, **_DECODER),
    "qwen3": _language(hf.Qwen3ForCausalLM, hf.Qwen3Config, **_DECODER, head_dim=8),
    "gemma2": _language(
        hf.Gemma2ForCausalLM, hf.Gemma2Config, **_DECODER, head_dim=8, sliding_window=4,
    ),
    "vit": _vision(hf.ViTForImageClassification, hf.ViTConfig, 16, **_PICTURE),
    "mobilevit": _vision(
        hf.MobileViTForImageClassification, hf.MobileViTConfig, 32, image_size=32,
        hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16],
        num_attention_heads=2, last_hidden_size=16,
    ),
    "mobilenet_v2": _vision(
        hf.MobileNetV2ForImageClassification, hf.MobileNetV2Config, 32, depth_multiplier=0.25,
        min_depth=4, depth_divisible_by=4, finegrained_output=False,
    ),
    "resnet": _vision(
        hf.ResNetForImageClassification, hf.ResNetConfig, 16, embedding_size=8,
        hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
    ),
    "resnet-bottleneck": _vision(
        hf.ResNetForImageClassification, hf.ResNetConfig, 16, embedding_size=8,
        hidden_sizes=[16, 16], depths=[1, 1],
    ),
    "convnext": _vision(
        hf.ConvNextForImageClassification, hf.ConvNextConfig, 16, hidden_sizes=[8, 16],
        depths=[1, 1], num_stages=2,
    ),
    "efficientnet": _vision(
        hf.EfficientNetForImageClassification, hf.EfficientNetConfig, 32,
        width_coefficient=0.0125, depth_coefficient=1.0, hidden_dim=16, in_channels=[8, 8],
        out_channels=[8, 8], kernel_sizes=[3, 5], strides=[1, 2], num_block_repeats=[1, 2],
        expand_ratios=[1, 4],
    ),
    "clip": Family(
        lambda: hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**_TEXT, "eos_token_id": 2}, vision_config=_PICTURE,
                projection_dim=8,
            )
        ),
        {"input_ids": _tokens(), "pixel_values": _images(16)},
        Criterion("contrastive", (ROWS,), _pairs),
        result="logits_per_image", predicted_rows=ROWS,
    ),
    "siglip": Family(
        lambda: hf.SiglipModel(
            hf.SiglipConfig(
                text_config={**_TEXT, "projection_size": 16}, vision_config=_PICTURE
            )
        ),
        {"input_ids": _tokens(), "pixel_values": _images(16)},
        Criterion("sigmoid_contrastive", (ROWS,), _pairs),
        result="logits_per_image", predicted_rows=ROWS,
    ),
    "t5": Family(
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=_NUM_TOKENS, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                use_cache=False,
            )
        ),
        {
            "input_ids": _tokens(), "attention_mask": _mask,
            "decoder_input_ids": _tokens(),
        },
        Criterion("cross_entropy", (_LENGTH, _NUM_TOKENS), _next),
    ),
    "whisper": Family(
        lambda: hf.WhisperForAudioClassification(
            hf.WhisperConfig(
                vocab_size=_NUM_TOKENS, d_model=16, encoder_layers=2, encoder_attention_heads=2,
                encoder_ffn_dim=24, num_mel_bins=8, max_source_positions=8, pad_token_id=0,
                classifier_proj_size=8, num_labels=NUM_CLASSES, decoder_layers=1,
                decoder_attention_heads=2, decoder_ffn_dim=24, max_target_positions=8,
            )
        ),
        {"input_features": lambda g: torch.randn(ROWS, 8, 16, generator=g)},
        _CLASSES,
    ),
}  # fmt: skip


def family_subject(name: str, plan: str) -> Subject:
    """Returns a family's model, at random weights, and what it is trained on."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = Named(family.make(), tuple(family.inputs), family.result)
    inputs = list(family.inputs.values())
    return initialised(Subject(model, inputs, family.criterion, plan, family.predicted_rows))
