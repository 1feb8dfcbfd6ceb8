"""HTML and SVG elements as text, in which whatever is not markup yet is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, final

_UNPRINTABLE: Final = {code: "\N{REPLACEMENT CHARACTER}" for code in range(32) if code != 10}


@final
class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """Returns an element.

    The attribute class is given as `class_`, text-anchor as `text_anchor`; numbers are
    written to two decimals.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(_value(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{pairs}>{join(children)}</{name}>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Returns the parts one after the other."""
    return Markup(separator.join(map(_escape, parts)))


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    marked: Sequence[bool],
    alignment: str,
) -> Markup:
    """Returns a table that scrolls sideways where it is too wide.

    Args:
        caption: what the table tells.
        header: the names of the columns.
        rows: the cells; the first of each row names the row.
        marked: for each row whether it stands out.
        alignment: `<` or `>` for each column.
    """
    classes = ["number" if side == ">" else "word" for side in alignment]
    head = [
        element("th", name, scope="col", class_=kind)
        for name, kind in zip(header, classes, strict=True)
    ]
    body = [
        element("tr", *_cells(row, classes), class_="chosen" if is_marked else "plain")
        for row, is_marked in zip(rows, marked, strict=True)
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", join(body, "\n")),
    )
    return element("div", whole, class_="wide", role="region", aria_label=caption, tabindex=0)


def _cells(row: Sequence[str], classes: Sequence[str]) -> list[Markup]:
    first, *others = zip(row, classes, strict=True)
    cells = [element("th", first[0], scope="row", class_=first[1])]
    return cells + [element("td", cell, class_=kind) for cell, kind in others]


def _escape(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text.translate(_UNPRINTABLE))


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
