"""`python -m pockmobile.analyze model.pt --data FILE`: finds what to train under a budget."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pockmobile.commands import Parser, Progress, run
from pockmobile.options.analysis import (
    add_analysis_options,
    add_task_options,
    check_analysis,
    find,
    inputs_of,
    read_data,
)
from pockmobile.options.common import (
    add_model_options,
    add_optimizer_options,
    add_training_options,
    check_output,
    constants,
    load,
    loss_of,
    optimizer_of,
    write_text,
)

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from pockmobile.planner import Findings

_DESCRIPTION: Final = """\
Find which layers of a model, and what share of their channels, to train under a budget.

MODEL is a torch.export archive, a state dict (torch.save or safetensors, with --model), or,
with --trust-pickle, a pickled module. It is not changed; the plan is for `export --plan`."""
_EXAMPLES: Final = """\
examples:
  pockmobile analyze model.pt2 --data train.safetensors --memory-budget 24MB
  pockmobile analyze model.pt2 --data train.npz --eval-data eval.npz --step-budget 0.4 \\
      --report report.html
  pockmobile export model.pt2 --plan model.plan.json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run(lambda: _run(_parse(argv)))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="pockmobile analyze",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="MODEL", type=Path, help="the model file")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the plan (default: MODEL as .plan.json)",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write an HTML report too")
    add_task_options(parser.add_argument_group("task and budget"))
    add_analysis_options(parser.add_argument_group("analysis"))
    add_model_options(parser.add_argument_group("model"))
    add_training_options(parser.add_argument_group("training"))
    add_optimizer_options(parser.add_argument_group("optimizer"))
    options = parser.parse_args(argv)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    constants(options)
    options.output = options.output or options.path.with_suffix(".plan.json")
    check_output(options.output, "--output", inputs_of(options))
    outputs = {}
    if options.report is not None:
        outputs = {"the report": options.report}
        kept = {**inputs_of(options), "the plan": options.output}
        check_output(options.report, "--report", kept)
    check_analysis(options, options.output, outputs)


def _run(options: argparse.Namespace) -> None:
    with Progress(quiet=False) as progress:
        findings = _analyze(options, progress)
    from pockmobile.planner.text import render_text

    print(render_text(findings))
    print()
    for path in filter(None, (options.output, options.report)):
        print(f"wrote {path}")
    print(f"{options.runs} keeps what was measured; it can be deleted")


def _analyze(options: argparse.Namespace, progress: Callable[[str], None]) -> "Findings":
    progress("import torch")
    from pockmobile.chart import render_analysis
    from pockmobile.planner.summary import summarize

    # What fails at once comes before the model, which may be large.
    optimizer_of(options)
    loss_of(options)
    progress("load")
    loaded = load(options)
    data = read_data(options, loaded)
    findings = find(options, loaded, data, progress, quiet=False)
    write_text(options.output, findings.plan.to_text())
    if options.report is not None:
        write_text(options.report, render_analysis(summarize(findings, loaded.name)))
    return findings


if __name__ == "__main__":
    sys.exit(main())
