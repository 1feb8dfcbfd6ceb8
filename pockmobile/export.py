"""`python -m pockmobile.export model.pt`: a PyTorch model -> one program that trains."""

import argparse
import io
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from pockmobile.commands import Parser, positive_integer, positive_number, run
from pockmobile.errors import UsageError
from pockmobile.loading.shapes import parse_shape

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from pockmobile.compiler import Program
    from pockmobile.optim import Optimizer

_DESCRIPTION: Final = """\
Turn a PyTorch model into one .pte file that trains, evaluates and predicts on the phone.

MODEL is a torch.export archive, a state dict (torch.save or safetensors, with --model), or,
with --trust-pickle, a pickled module."""
_EXAMPLES: Final = """\
examples:
  pockmobile export model.pt2 --plan last:2
  pockmobile export weights.safetensors --model my.models:make_net --input-shape 3,224,224
  pockmobile export lm.pt2 --loss next_token --optimizer adamw --weight-decay 0.01"""
_CONSTANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "sgd": ("weight_decay",),
    "momentum": ("momentum", "nesterov", "weight_decay"),
    "adamw": ("betas", "eps", "weight_decay"),
    "lion": ("betas", "weight_decay"),
}


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
    _add_model_options(parser.add_argument_group("model and examples"))
    _add_training_options(parser.add_argument_group("training"))
    _add_optimizer_options(parser.add_argument_group("optimizer"))
    options = parser.parse_args(argv)
    _check(options)
    return options


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--model", metavar="MODULE:FUNCTION", help="returns the module that a state dict fits"
    )
    group.add_argument(
        "--trust-pickle", action="store_true", help="allow MODEL to run code when it is loaded"
    )
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
        "--batch-size",
        metavar="N",
        type=positive_integer,
        help="examples in a training step (default: the examples' own, or 8)",
    )
    group.add_argument(
        "--predict-batch-size",
        metavar="N",
        type=positive_integer,
        default=1,
        help="examples in a prediction (default: 1)",
    )


def _add_training_options(group: Any) -> None:
    group.add_argument(
        "--loss",
        default="cross_entropy",
        help="cross_entropy, next_token, mse, bce or MODULE:FUNCTION (default: cross_entropy)",
    )
    group.add_argument(
        "--plan",
        default="full",
        help="what is trained: full, head, bias, last:N, sparse:B:W, lora:R or a plan file "
        "(default: full)",
    )
    group.add_argument(
        "--target",
        choices=("xnnpack", "portable"),
        default="xnnpack",
        help="what runs it (default: xnnpack)",
    )


def _add_optimizer_options(group: Any) -> None:
    group.add_argument("--optimizer", choices=tuple(_CONSTANTS), default="sgd")
    group.add_argument("--momentum", metavar="X", type=float, help="momentum (default: 0.9)")
    group.add_argument(
        "--nesterov", action="store_true", default=None, help="Nesterov's momentum"
    )
    group.add_argument(
        "--weight-decay", metavar="X", type=float, help="(default: 0; adamw 0.01)"
    )
    group.add_argument(
        "--betas",
        metavar="B1,B2",
        type=_betas,
        help="decay rates (default: adamw 0.9,0.999; lion 0.9,0.99)",
    )
    group.add_argument("--eps", metavar="X", type=float, help="adamw's (default: 1e-8)")
    group.add_argument(
        "--clip-norm", metavar="X", type=positive_number, help="largest norm of all gradients"
    )


def _betas(text: str) -> tuple[float, float]:
    try:
        beta1, beta2 = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected B1,B2 like 0.9,0.99, found {text!r}"
        ) from None
    return beta1, beta2


def _check(options: argparse.Namespace) -> None:
    options.input_shape = [parse_shape(text) for text in options.input_shape]
    if options.input_shape and options.example_inputs:
        raise UsageError("--input-shape and --example-inputs exclude each other; give one")
    _constants(options)
    options.output = options.output or options.path.with_suffix(".pte")
    if options.output == options.path:
        raise UsageError(f"{options.output} would overwrite the model; choose another --output")
    folder = options.output.parent
    if options.output.is_dir() or not folder.is_dir():
        found = options.output if options.output.is_dir() else folder
        expected = "is a directory" if found.is_dir() else "is no directory"
        raise UsageError(f"cannot write {options.output}: {found} {expected}")


def _constants(options: argparse.Namespace) -> dict[str, Any]:
    """The optimizer's constants that were given; those of another optimizer are an error."""
    own = _CONSTANTS[options.optimizer]
    names = sorted({name for names in _CONSTANTS.values() for name in names})
    given = {
        name: getattr(options, name) for name in names if getattr(options, name) is not None
    }
    for name in given:
        if name not in own:
            raise UsageError(
                f"{_flag(name)} does not belong to {options.optimizer}, which takes "
                f"{', '.join(map(_flag, own))}; it belongs to "
                f"{' and '.join(other for other in _CONSTANTS if name in _CONSTANTS[other])}"
            )
    return given


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    with _Progress(quiet=options.quiet) as progress:
        program = _export(options, progress)
        progress("save")
        program.save(options.output)
    if not options.quiet:
        print(program.report())
        print(
            f"wrote {options.output} in {time.perf_counter() - start:.1f} s, "
            f"peak memory {_peak_memory() / 1e6:.0f} MB"
        )


def _export(options: argparse.Namespace, progress: Callable[[str], None]) -> "Program":
    progress("import torch")
    from pockmobile.compiler import compile
    from pockmobile.loading.examples import example_batch
    from pockmobile.loading.factory import parse_factory
    from pockmobile.loading.models import load_model

    # What fails at once comes before the model, which may be large.
    optimizer = _optimizer(options)
    loss = parse_factory(options.loss) if ":" in options.loss else options.loss
    progress("load")
    loaded = load_model(
        options.path, model_factory=options.model, trust_pickle=options.trust_pickle
    )
    batch = example_batch(
        loaded,
        file=options.example_inputs,
        shapes=options.input_shape,
        batch_size=options.batch_size,
    )
    # torch.export prints the graph of a model that it cannot capture, on top of its error.
    with redirect_stderr(io.StringIO()):
        return compile(
            loaded.model,
            batch.args,
            batch.targets,
            example_kwargs=batch.kwargs,
            loss=loss,
            plan=options.plan,
            optimizer=optimizer,
            clip_norm=options.clip_norm,
            target=options.target,
            predict_batch_size=options.predict_batch_size,
            name=loaded.name,
            progress=progress,
        )


def _optimizer(options: argparse.Namespace) -> "Optimizer":
    from pockmobile.optim import OPTIMIZERS

    return OPTIMIZERS[options.optimizer](**_constants(options))


def _peak_memory() -> int:
    """Peak memory of this process in bytes; macOS counts in bytes, Linux in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@final
class _Progress:
    """Shows on stderr the stage at work, and the seconds that each stage before it took."""

    def __init__(self, *, quiet: bool) -> None:
        from tqdm import tqdm

        # This very stream, since what libraries write to stderr meanwhile goes nowhere.
        self._stream = sys.stderr
        # None: shown on a terminal only.
        disable = True if quiet else None
        self._bar = tqdm(bar_format="{desc}", leave=False, disable=disable, file=self._stream)
        self._stage = ""
        self._start = 0.0

    def __call__(self, stage: str) -> None:
        self._finish()
        self._stage, self._start = stage, time.perf_counter()
        self._bar.set_description_str(f"         {stage} ...")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._bar.close()

    def _finish(self) -> None:
        if self._stage and not self._bar.disable:
            seconds = time.perf_counter() - self._start
            self._bar.write(f"{seconds:6.1f} s {self._stage}", file=self._stream)


if __name__ == "__main__":
    sys.exit(main())
