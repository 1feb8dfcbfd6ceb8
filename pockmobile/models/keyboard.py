"""The language model of the keyboard, pretrained by `scripts/pretrain_keyboard.py`."""

from importlib.resources import files
from typing import Final

from safetensors.torch import load

from pockmobile.models.transformer_lm import TransformerLM

_WEIGHTS: Final = "keyboard.safetensors"


def keyboard_lm(*, pretrained: bool = False) -> TransformerLM:
    """Returns a tied language model of 1.9 M parameters: width 128, 3 blocks, context 32.

    Its 10,000 tokens are those of `pockmobile.keyboard.Vocabulary`. Weights are random unless
    `pretrained`; those that ship are float16 in the file, and float32 in the model.
    """
    model = TransformerLM(
        num_tokens=10_000, context=32, width=128, num_blocks=3, num_heads=4, head_bias=True
    )
    if pretrained:
        weights = load((files("pockmobile.models") / _WEIGHTS).read_bytes())
        weights["head.weight"] = weights["embedding.weight"]
        model.load_state_dict(weights)
        model.eval()
    return model
