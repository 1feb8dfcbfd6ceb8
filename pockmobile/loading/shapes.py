"""`--input-shape`: the shape of one example, without the batch."""

import re
from dataclasses import dataclass
from typing import Final, final

from pockmobile.errors import UsageError

DTYPES: Final = ("float32", "int64", "int32", "uint8", "bool")
_PATTERN: Final = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:,\d+)*)(?::(?P<dtype>\w+))?"
)


@final
@dataclass(frozen=True)
class InputShape:
    """One input of the model: its name (None: by position), shape without the batch, dtype."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str = "float32"


def parse_shape(text: str) -> InputShape:
    """Reads `3,224,224`, `128:int64` or `mask=128:float32`.

    Raises:
        UsageError: of another form, a size of 0, or an unknown dtype.
    """
    match = _PATTERN.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(
            f"{text!r} is no input shape: expected the shape of one example, like 3,224,224 or "
            f"128:int64 or name=3,224,224"
        )
    shape = tuple(int(size) for size in match["shape"].split(","))
    if 0 in shape:
        raise UsageError(f"input shape {text} has a size of 0; every size is at least 1")
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        raise UsageError(
            f"input shape {text} has dtype {dtype!r}: expected {', '.join(DTYPES)}"
        )
    return InputShape(match["name"], shape, dtype)
