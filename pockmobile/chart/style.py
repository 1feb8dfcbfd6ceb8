"""How the page looks: one style sheet, for light, dark, phone and paper.

Colours are of Okabe and Ito's set, which colour-blind people tell apart; in the dark blue and
vermilion give way to their lighter neighbours.
"""

from typing import Final

LIGHT: Final = {
    "paper": "#ffffff",
    "ink": "#1c2126",
    "muted": "#57606a",
    "line": "#d5dae0",
    "shade": "#f3f5f7",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
}
DARK: Final = {
    "paper": "#15181b",
    "ink": "#e4e7ea",
    "muted": "#a0a8b1",
    "line": "#373d44",
    "shade": "#1f2428",
    "blue": "#56b4e9",
    "orange": "#e69f00",
    "green": "#009e73",
}

_PAGE: Final = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .75rem; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .5rem; font-size: 1.2rem; line-height: 1.3; }
p { margin: .5rem 0 1rem; max-width: 44rem; }
.answer { font-size: 1.15rem; line-height: 1.5; }
.muted { color: var(--muted); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr));
  gap: .75rem 1.5rem; margin: 1.5rem 0; padding: 1rem 0; border-block: 1px solid var(--line); }
dt { color: var(--muted); font-size: .8125rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
"""

_TABLES: Final = """
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
caption { padding: .25rem 0; color: var(--muted); text-align: left; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { padding-left: .5rem; }
th { font-weight: 400; }
thead th { color: var(--muted); vertical-align: bottom; }
.word { text-align: left; }
td.word { min-width: 5rem; overflow-wrap: anywhere; white-space: normal; }
.number { text-align: right; }
tr.chosen > * { background: var(--shade); font-weight: 600; }
"""

_PHONE: Final = """
body { padding: 1.25rem 1rem 3rem; }
dl { grid-template-columns: 1fr 1fr; }
th, td { padding: .35rem .4rem; }
td.word { min-width: 4rem; }
"""

_CHARTS: Final = """
.charts { display: grid; gap: 1.5rem 2.5rem; align-items: start; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; max-width: 34rem; }
figcaption { margin-bottom: .25rem; color: var(--muted); font-size: .875rem; }
svg { display: block; width: 100%; height: auto; }
text { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
.small { fill: var(--muted); }
.label, .small.is-chosen { fill: var(--ink); font-weight: 600; }
.label { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--line); stroke-width: 1; }
.zero { stroke: var(--muted); stroke-width: 1; }
.weight { --tone: var(--blue); }
.bias { --tone: var(--orange); }
.forward { --tone: var(--blue); }
.backward { --tone: var(--orange); }
.update { --tone: var(--green); }
.bar { fill: var(--paper); stroke: var(--tone); stroke-width: 1; }
.bar.is-chosen, .area { fill: var(--tone); stroke: var(--tone); }
.area { stroke-width: .5; }
.whisker { stroke: var(--ink); stroke-width: 1; }
.mark { stroke: var(--muted); stroke-width: 1; }
.cell { fill: var(--shade); stroke: var(--muted); stroke-width: 1; }
.cell.is-trained { fill: var(--tone); stroke: var(--tone); }
.front { fill: none; stroke: var(--blue); stroke-width: 1.5; }
.point { fill: var(--paper); stroke: var(--blue); stroke-width: 1.5; }
.point.is-chosen { fill: var(--orange); stroke: var(--paper); }
.peak { fill: var(--ink); stroke: var(--paper); stroke-width: 1.5; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0; padding: 0;
  list-style: none; color: var(--muted); font-size: .875rem; }
.key { display: inline-block; width: 1rem; height: .875rem; margin-right: .4rem;
  vertical-align: -.1rem; }
"""

_PRINT: Final = """
@page { margin: 15mm; }
body { max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
h2, section > p, .legend { break-after: avoid; }
figure, tr, dl, p, .legend { break-inside: avoid; }
th, td { padding: .25rem .4rem; }
.wide { overflow: visible; }
.charts { grid-template-columns: 1fr 1fr; gap: 1rem; }
"""


def style_sheet() -> str:
    """Returns the style sheet; it may hold no character that HTML would have to escape."""
    return "\n".join(
        [
            ":root { color-scheme: light dark; }",
            _colours(LIGHT),
            f"@media screen and (prefers-color-scheme: dark) {{ {_colours(DARK)} }}",
            _PAGE + _TABLES + _CHARTS,
            f"@media screen and (max-width: 40rem) {{ {_PHONE} }}",
            f"@media print {{ {_PRINT} }}",
        ]
    )


def _colours(colours: dict[str, str]) -> str:
    pairs = "; ".join(f"--{name}: {colour}" for name, colour in colours.items())
    return f":root {{ {pairs}; }}"
