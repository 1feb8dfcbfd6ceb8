"""`python -m pockmobile.forecast package.module:function`: what a program would need."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pockmobile.artifact.report import render_needs
from pockmobile.commands import Parser, Progress, peak_memory, positive_integer, run
from pockmobile.errors import UsageError
from pockmobile.loading.shapes import parse_shape
from pockmobile.options.common import (
    add_optimizer_options,
    add_program_options,
    add_training_options,
    constants,
    loss_of,
    optimizer_of,
)
from pockmobile.plan import PRESET_SYNTAX

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from pockmobile.compiler import Program

_DESCRIPTION: Final = """\
Tell the memory and the file size of a program that trains, without a weight in memory.

MODEL is package.module:function; what it returns is traced on torch's meta device."""
_EXAMPLES: Final = """\
examples:
  pockmobile forecast pockmobile.models:llama_1b --input-shape 128:int64 --batch-size 1 \\
      --loss next_token --plan lora:8 --frozen-weights int4"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run(lambda: _run(_parse(argv)))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="pockmobile forecast",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="package.module:function")
    parser.add_argument("--quiet", action="store_true", help="print no stages")
    parser.add_argument(
        "--input-shape",
        metavar="SHAPE",
        action="append",
        required=True,
        help="shape of one example: 3,224,224 or 128:int64 or mask=128; once for each input",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive_integer,
        help="examples in a training step (default: 8)",
    )
    parser.add_argument(
        "--plan", default="full", help=f"what is trained: {PRESET_SYNTAX}, or a plan file"
    )
    add_program_options(parser)
    add_training_options(parser)
    add_optimizer_options(parser.add_argument_group("optimizer"))
    options = parser.parse_args(argv)
    options.input_shape = [parse_shape(text) for text in options.input_shape]
    constants(options)
    return options


def _run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    with Progress(quiet=options.quiet) as progress:
        program = _forecast(options, progress)
    print(render_needs(program.manifest, program.num_bytes))
    print(
        f"\nforecast in {time.perf_counter() - start:.1f} s, "
        f"peak memory {peak_memory() / 1e6:.0f} MB"
    )


def _forecast(options: argparse.Namespace, progress: Callable[[str], None]) -> "Program":
    progress("import torch")
    import torch
    from torch import nn

    from pockmobile.compiler import compile
    from pockmobile.loading.examples import example_batch
    from pockmobile.loading.factory import parse_factory
    from pockmobile.loading.models import LoadedModel

    optimizer, loss = optimizer_of(options), loss_of(options)
    make = parse_factory(options.model)
    progress("make the model")
    with torch.device("meta"):
        model = make()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{options.model} returns a {type(model).__name__}, expected a torch.nn.Module"
        )
    batch = example_batch(
        LoadedModel(model, type(model).__name__),
        shapes=options.input_shape,
        batch_size=options.batch_size,
    )
    return compile(
        model.to("meta"),
        tuple(value.to("meta") for value in batch.args),
        example_kwargs={name: value.to("meta") for name, value in batch.kwargs.items()},
        loss=loss,
        plan=options.plan,
        optimizer=optimizer,
        clip_norm=options.clip_norm,
        target=options.target,
        frozen_weights=options.frozen_weights,
        loss_chunk=options.loss_chunk,
        progress=progress,
    )


if __name__ == "__main__":
    sys.exit(main())
