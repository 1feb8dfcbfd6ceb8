"""What `scripts/bench.py` and `scripts/bench_peers.py` share: arguments, and what is done."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pockmobile.commands import Parser, positive_integer
from pockmobile.errors import PockmobileError, UsageError, nearest
from pockmobile.plan import UpdatePlan
from scripts.benchmark.cache import Cache
from scripts.benchmark.measure import Setting, measure
from scripts.benchmark.peers import Environments
from scripts.benchmark.plot import check_plot, draw
from scripts.benchmark.results import Case, add_result, is_broken, read_results
from scripts.benchmark.table import NOTES, lines_of
from scripts.benchmark.variants import VARIANTS
from scripts.benchmark.works import FOR_TESTS, ON_REQUEST, WORKS

MOST_WORKS: Final = [name for name in WORKS if name not in FOR_TESTS | ON_REQUEST]


class BrokenError(PockmobileError):
    """A run that measured something that does not train as it should."""


def parser_of(
    description: str, *, works: Sequence[str], batches: Sequence[int], variants: Sequence[str]
) -> Parser:
    """Returns a parser of the arguments; what is given here is the default of each."""
    parser = Parser(description=description)
    add = parser.add_argument
    add(
        "works",
        nargs="*",
        type=_name_in(WORKS),
        metavar="WORK",
        help=f"of {', '.join(WORKS)} (default: {', '.join(works)})",
    )
    add("--batch", type=positive_integer, nargs="+", default=batches, help="examples of a step")
    add(
        "--variants",
        type=_name_in(VARIANTS),
        nargs="+",
        default=variants,
        metavar="VARIANT",
        help=f"of {', '.join(VARIANTS)} (default: {', '.join(variants)})",
    )
    add("--threads", type=positive_integer, nargs="+", default=[1], help="default: 1")
    add("--rounds", type=positive_integer, default=15, help="default: 15; fewer tell little")
    add("--plan", help="a preset or a plan file, in the place of each work's own")
    add("--cache", type=Path, help="keeps what was exported (default: it is not kept)")
    add("-o", "--output", type=Path, help="results as JSON; adds to what the file holds")
    add("--plot", type=Path, metavar="FILE", help="a picture of the results")
    parser.set_defaults(default_works=works)
    return parser


def compare(
    arguments: argparse.Namespace, environments: Environments, variants: Sequence[str]
) -> None:
    """Measures, prints and writes.

    Args:
        arguments: as `parser_of` reads them.
        environments: in which peers run.
        variants: their names.

    Raises:
        UsageError: an argument is wrong.
        BrokenError: a loss does not fall, or a variant that is no peer fails.
    """
    settings = _settings(arguments, variants)
    # What would fail at the end fails before anything is measured.
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if arguments.output is not None:
        read_results(arguments.output)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with _cache(arguments.cache, environments) as cache:
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


def _settings(arguments: argparse.Namespace, variants: Sequence[str]) -> list[Setting]:
    plan = _plan(arguments.plan)
    return [
        Setting(
            work=WORKS[name],
            plan=plan or WORKS[name].plan,
            batch=batch,
            threads=threads,
            num_rounds=arguments.rounds,
            variants=tuple(VARIANTS[variant] for variant in dict.fromkeys(variants)),
        )
        for name in dict.fromkeys(arguments.works or arguments.default_works)
        for batch in dict.fromkeys(arguments.batch)
        for threads in dict.fromkeys(arguments.threads)
    ]


@contextmanager
def _cache(folder: Path | None, environments: Environments) -> Iterator[Cache]:
    if folder is not None:
        try:
            yield Cache(folder, environments)
        except OSError as error:
            raise UsageError(f"--cache {folder}: {error.strerror}") from error
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Cache(Path(temporary), environments)


def _name_in(known: Mapping[str, object]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"unknown {text!r}: {nearest(text, known)}")
        return text

    return read
