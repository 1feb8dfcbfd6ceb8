"""`python -m pockmobile.export model.pt`: a PyTorch model -> one program that trains."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pockmobile.commands import Parser, Progress, peak_memory, positive_integer, run
from pockmobile.errors import UsageError
from pockmobile.loading.shapes import parse_shape
from pockmobile.options.analysis import (
    add_analysis_options,
    add_task_options,
    check_analysis,
    check_no_analysis,
    find,
    inputs_of,
    read_data,
    read_examples,
)
from pockmobile.options.common import (
    add_model_options,
    add_optimizer_options,
    add_program_options,
    add_training_options,
    check_output,
    constants,
    load,
    loss_of,
    optimizer_of,
    write_text,
)
from pockmobile.options.targets import TARGETS, add_target_options, check_target, target_of
from pockmobile.plan import PRESET_SYNTAX

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from pockmobile.compiler import Program
    from pockmobile.loading.examples import ExampleBatch
    from pockmobile.loading.models import LoadedModel
    from pockmobile.plan import UpdatePlan
    from pockmobile.planner import Examples, Findings
    from pockmobile.targets.qnn.calibration import Batch

_DESCRIPTION: Final = """\
Turn a PyTorch model into one .pte file that trains, evaluates and predicts on the phone.

MODEL is a torch.export archive, a state dict (torch.save or safetensors, with --model), or,
with --trust-pickle, a pickled module."""
_EXAMPLES: Final = """\
examples:
  pockmobile export model.pt2 --plan last:2
  pockmobile export weights.safetensors --model my.models:make_net --input-shape 3,224,224
  pockmobile export lm.pt2 --loss next_token --optimizer adamw --weight-decay 0.01
  pockmobile export model.pt2 --target coreml --precision fp16
  pockmobile export model.pt2 --target qnn --soc SM8650
  pockmobile export model.pt2 --plan auto --data train.safetensors --memory-budget 24MB"""
_AUTO: Final = "auto"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run(lambda: _run(_parse(argv)))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="pockmobile export",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="MODEL", type=Path, help="the model file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="the program (default: MODEL as .pte)"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the report, and write nothing; what QNN would take is told without its "
        "libraries",
    )
    examples = parser.add_argument_group("model and examples")
    add_model_options(examples)
    _add_example_options(examples)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--plan",
        default="full",
        help=f"what is trained: {PRESET_SYNTAX}, a plan file, or auto, which finds it as "
        "`analyze` does (default: full)",
    )
    training.add_argument(
        "--split",
        action="store_true",
        help="adds `encode` for what comes before the first layer that learns, so that later "
        "epochs start there",
    )
    add_program_options(training)
    add_training_options(training, TARGETS)
    add_target_options(parser)
    add_optimizer_options(parser.add_argument_group("optimizer"))
    auto = parser.add_argument_group("with --plan auto")
    add_task_options(
        auto,
        more_of_memory="; of any other plan, values are computed again instead of kept "
        "where it needs more",
    )
    add_analysis_options(auto)
    options = parser.parse_args(argv)
    _check(options)
    return options


def _add_example_options(group: Any) -> None:
    group.add_argument(
        "--example-inputs",
        metavar="FILE",
        type=Path,
        help=".safetensors, .npz or .pt with a batch of inputs, by position or by the names of "
        "forward()'s parameters; `target` or `labels` holds the targets",
    )
    group.add_argument(
        "--input-shape",
        metavar="SHAPE",
        action="append",
        default=[],
        help="shape of one example: 3,224,224 or 128:int64 or mask=128; once for each input",
    )
    group.add_argument(
        "--predict-batch-size",
        metavar="N",
        type=positive_integer,
        default=1,
        help="examples in a prediction (default: 1)",
    )


def _check(options: argparse.Namespace) -> None:
    options.input_shape = [parse_shape(text) for text in options.input_shape]
    if options.input_shape and options.example_inputs:
        raise UsageError("--input-shape and --example-inputs exclude each other; give one")
    constants(options)
    check_target(options)
    if options.frozen_weights != "fp32" and options.target != "xnnpack":
        raise UsageError(
            f"--frozen-weights {options.frozen_weights} needs --target xnnpack, found "
            f"{options.target}"
        )
    options.output = options.output or options.path.with_suffix(".pte")
    check_output(options.output, "--output", inputs_of(options))
    if options.plan == _AUTO:
        _check_auto(options)
    else:
        check_no_analysis(options)


def _check_auto(options: argparse.Namespace) -> None:
    if options.target in ("coreml", "qnn"):
        raise UsageError(
            "--plan auto knows what layers cost on xnnpack and portable, found --target "
            f"{options.target}; find the plan with `analyze`, then give the file that it writes"
        )
    if options.input_shape or options.example_inputs:
        raise UsageError(
            "--plan auto takes its examples from --data; leave --input-shape and "
            "--example-inputs out"
        )
    program = {"the program": options.output}
    plan = _plan_file(options)
    check_output(plan, "--output", {**inputs_of(options), **program})
    check_analysis(options, plan, program)


def _plan_file(options: argparse.Namespace) -> Path:
    """Returns where the plan that was found is kept, beside the program."""
    output: Path = options.output
    return output.with_suffix(".plan.json")


def _run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    with Progress(quiet=options.quiet) as progress:
        program, findings = _export(options, progress)
        if not options.dry_run:
            progress("save")
            program.save(options.output)
    if options.quiet:
        return
    if findings is not None:
        from pockmobile.planner.text import render_text

        print(render_text(findings))
        print(f"\nwrote {_plan_file(options)}; {options.runs} can be deleted\n")
    print(program.report())
    done = "a dry run: wrote nothing" if options.dry_run else f"wrote {options.output}"
    print(
        f"{done} in {time.perf_counter() - start:.1f} s, "
        f"peak memory {peak_memory() / 1e6:.0f} MB"
    )


def _export(
    options: argparse.Namespace, progress: Callable[[str], None]
) -> "tuple[Program, Findings | None]":
    progress("import torch")
    # What fails at once comes before the model, which may be large.
    optimizer_of(options)
    loss_of(options)
    progress("load")
    loaded = load(options)
    if options.plan != _AUTO:
        from pockmobile.loading.examples import example_batch

        batch = example_batch(
            loaded,
            file=options.example_inputs,
            shapes=options.input_shape,
            batch_size=options.batch_size,
        )
        return _compile(options, loaded, batch, options.plan, progress), None
    data = read_data(options, loaded)
    findings = find(options, loaded, data, progress, quiet=options.quiet)
    # Now, so that the plan is kept whatever comes.
    write_text(_plan_file(options), findings.plan.to_text())
    return _compile(options, loaded, data.example, findings.plan, progress), findings


def _compile(
    options: argparse.Namespace,
    loaded: "LoadedModel",
    batch: "ExampleBatch | Examples",
    plan: "str | UpdatePlan",
    progress: Callable[[str], None],
) -> "Program":
    from pockmobile.compiler import compile

    return compile(
        loaded.model,
        batch.args,
        batch.targets,
        example_kwargs=batch.kwargs,
        loss=loss_of(options),
        plan=plan,
        optimizer=optimizer_of(options),
        clip_norm=options.clip_norm,
        target=target_of(
            options,
            dry_run=options.dry_run,
            calibration=_calibration(options, loaded, batch),
        ),
        predict_batch_size=options.predict_batch_size,
        split=options.split,
        frozen_weights=options.frozen_weights,
        memory_budget=None if options.plan == _AUTO else options.memory_budget,
        loss_chunk=options.loss_chunk,
        name=loaded.name,
        progress=progress,
    )


def _calibration(
    options: argparse.Namespace, loaded: "LoadedModel", batch: "ExampleBatch | Examples"
) -> "list[Batch]":
    """Returns the whole batches of the file that calibrates, if there is one."""
    if options.calibration is None or options.dry_run:
        return []
    from torch import arange

    from pockmobile.targets.qnn.calibration import Batch

    size = len(next(iter((*batch.args, *batch.kwargs.values()))))
    examples = read_examples(options, options.calibration, loaded, size)
    starts = range(0, examples.num_examples - size + 1, size)
    parts = [examples.select(arange(start, start + size)) for start in starts]
    return [Batch(part.args, part.targets, part.kwargs) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
