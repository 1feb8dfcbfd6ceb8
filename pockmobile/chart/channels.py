"""The chosen channels: for each layer of the plan a strip, with the trained part filled."""

import math
from collections.abc import Sequence
from typing import Final

from pockmobile.chart.analysis import ChosenLayer
from pockmobile.chart.markup import Markup, element
from pockmobile.chart.svg import (
    SMALL,
    WIDTH,
    Scale,
    box,
    figure,
    hint,
    shortened,
    text,
    text_width,
)

_ROW: Final = 42.0
_STRIP: Final = 12.0
_BIAS: Final = 12.0  # the side of the square at the end, filled where the bias is trained
_LAYERS: Final = 16


def channel_charts(chosen: Sequence[ChosenLayer]) -> list[Markup]:
    """Returns the charts, with about as many layers each."""
    if not chosen:
        return []
    size = math.ceil(len(chosen) / math.ceil(len(chosen) / _LAYERS))
    return [
        _chart(chosen[first : first + size], first) for first in range(0, len(chosen), size)
    ]


def trained_text(layer: ChosenLayer) -> str:
    """Returns in words what is trained: `48 of 384 input channels, bias`."""
    width = layer.stop - layer.start
    if not width:
        return "bias alone" if layer.trains_bias else "nothing"
    share = f"{width:,} of {layer.num_channels:,} {layer.dim_name}"
    if width == layer.num_channels:
        share = f"all {width:,} {layer.dim_name}"
    return share + (", bias" if layer.trains_bias else "")


def _exact_text(layer: ChosenLayer) -> str:
    """Returns the same with the range of channels, which the picture has no room for."""
    span = f" ({layer.start}:{layer.stop})" if layer.stop > layer.start else ""
    return f"{layer.layer}: {trained_text(layer)}{span}"


def _chart(layers: Sequence[ChosenLayer], first: int) -> Markup:
    parts = [part for row, layer in enumerate(layers) for part in _row(layer, row * _ROW + 4)]
    span = f"{first + 1}"
    if len(layers) > 1:
        span = f"{first + 1} to {first + len(layers)}"
    description = "; ".join(map(_exact_text, layers))
    return figure(
        f"channels-{first + 1}",
        f"Trained channels, {span} of the plan",
        description,
        len(layers) * _ROW + 4,
        parts,
    )


def _row(layer: ChosenLayer, top: float) -> list[Markup]:
    words = trained_text(layer)
    strip_width = WIDTH - 2 - _BIAS - 8
    scale = Scale(0, max(layer.num_channels, 1), 1, 1 + strip_width)
    y = top + 18
    room = WIDTH - text_width(words, SMALL) - 14
    bias = "cell is-trained bias" if layer.trains_bias else "cell"
    window = scale(layer.stop) - scale(layer.start)
    trained = box(scale(layer.start), y, max(window, 1.5), _STRIP, "cell is-trained weight")
    return [
        text(1, top + 11, shortened(layer.layer, room, SMALL), "start", "name"),
        text(WIDTH - 1, top + 11, words, "end", "small"),
        element(
            "g",
            hint(_exact_text(layer)),
            box(1, y, strip_width, _STRIP, "cell"),
            *([trained] if window else []),
            box(WIDTH - 1 - _BIAS, y, _BIAS, _STRIP, bias),
        ),
    ]
