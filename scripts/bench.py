"""Compares a training step of ours with PyTorch's and stock ExecuTorch's: time and memory.

Each variant trains in a process of its own; they take turns, so that no two run at once:
    python scripts/bench.py mobilenet_v2-0.35-96 --batch 8 -o bench.json
Exits with 1 if a loss does not fall, or if one of ours or of eager PyTorch cannot be measured
or trains something else. What cannot be measured is told in a line below the table.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.commands import Parser, positive_integer, run
from pockmobile.errors import PockmobileError, UsageError, nearest
from pockmobile.plan import UpdatePlan
from scripts.benchmark.cache import Cache
from scripts.benchmark.measure import Setting, measure
from scripts.benchmark.plot import check_plot, draw
from scripts.benchmark.results import Case, add_result, is_broken, read_results
from scripts.benchmark.table import NOTES, lines_of
from scripts.benchmark.variants import VARIANTS
from scripts.benchmark.works import FOR_TESTS, WORKS

_ALL: Final = [name for name in WORKS if name not in FOR_TESTS]


class BrokenError(PockmobileError):
    """A run that measured something that does not train as it should."""


def main() -> int:
    """Measures, prints and writes; returns the exit status."""
    return run(_main)


def _main() -> None:
    arguments = _parser().parse_args()
    settings = _settings(arguments)
    # What would fail at the end fails before anything is measured.
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if arguments.output is not None:
        read_results(arguments.output)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with _cache(arguments.cache) as cache:
        cases = [_measure(setting, cache, arguments.output) for setting in settings]
    print(NOTES)
    if arguments.plot is not None:
        draw(cases, arguments.plot)
    broken = [case.title for case in cases if is_broken(case)]
    if broken:
        raise BrokenError(
            f"some of this failed, or did not train as it should: {'; '.join(broken)}"
        )


def _measure(setting: Setting, cache: Cache, output: Path | None) -> Case:
    from tqdm import tqdm

    # None: shown on a terminal only.
    bar = tqdm(total=setting.num_stages, desc=setting.work.name, leave=False, disable=None)
    with bar:

        def progress(stage: str) -> None:
            bar.set_postfix_str(stage, refresh=False)
            bar.update()

        case = measure(setting, cache, progress)
    print("\n".join(lines_of(case)), flush=True)
    if output is not None:
        add_result(output, case)
    return case


def _plan(text: str | None) -> str | None:
    """Returns a preset, or the whole path of a plan file, once it has been read."""
    if text is None or not text.endswith(".json"):
        return text
    UpdatePlan.load(text)
    return str(Path(text).resolve())


def _settings(arguments: argparse.Namespace) -> list[Setting]:
    plan = _plan(arguments.plan)
    return [
        Setting(
            work=WORKS[name],
            plan=plan or WORKS[name].plan,
            batch=batch,
            threads=threads,
            num_rounds=arguments.rounds,
            variants=tuple(VARIANTS[variant] for variant in dict.fromkeys(arguments.variants)),
        )
        for name in dict.fromkeys(arguments.works or _ALL)
        for batch in dict.fromkeys(arguments.batch)
        for threads in dict.fromkeys(arguments.threads)
    ]


@contextmanager
def _cache(folder: Path | None) -> Iterator[Cache]:
    if folder is not None:
        try:
            yield Cache(folder)
        except OSError as error:
            raise UsageError(f"--cache {folder}: {error.strerror}") from error
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Cache(Path(temporary))


def _parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "works",
        nargs="*",
        type=_name_in(WORKS),
        metavar="WORK",
        help=f"of {', '.join(WORKS)} (default: all but {', '.join(FOR_TESTS)})",
    )
    add("--batch", type=positive_integer, nargs="+", default=[1, 8], help="examples of a step")
    add(
        "--variants",
        type=_name_in(VARIANTS),
        nargs="+",
        default=list(VARIANTS),
        metavar="VARIANT",
        help=f"of {', '.join(VARIANTS)} (default: all)",
    )
    add("--threads", type=positive_integer, nargs="+", default=[1], help="default: 1")
    add("--rounds", type=positive_integer, default=15, help="default: 15; fewer tell little")
    add("--plan", help="a preset or a plan file, in the place of each work's own")
    add("--cache", type=Path, help="keeps what was exported (default: it is not kept)")
    add("-o", "--output", type=Path, help="results as JSON; adds to what the file holds")
    add("--plot", type=Path, metavar="FILE", help="a picture of the results")
    return parser


def _name_in(known: Mapping[str, object]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"unknown {text!r}: {nearest(text, known)}")
        return text

    return read


if __name__ == "__main__":
    sys.exit(main())
