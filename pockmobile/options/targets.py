"""What runs a program: the options of targets that have some, and the target they make."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pockmobile.commands import positive_number
from pockmobile.errors import UsageError
from pockmobile.options.common import flag

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from pockmobile.targets import Target

TARGETS: Final = ("xnnpack", "coreml", "qnn", "portable")
_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "coreml": ("precision", "ios", "compute_units", "loss_scale"),
    "qnn": ("precision", "soc", "loss_scale", "calibration", "calibration_lr"),
}
"""Of each target that has some."""
_PRECISIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "coreml": ("fp32", "fp16"),
    "qnn": ("fp16", "int16"),
}
"""Of each target that has some; the first is what it has by default."""


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is chosen for Core ML and for QNN."""
    parser.add_argument_group("with --target coreml or qnn").add_argument(
        "--precision",
        choices=tuple(dict.fromkeys(name for names in _PRECISIONS.values() for name in names)),
        help="fp32 (Core ML's default), fp16 (QNN's; for the Neural Engine), or, as an "
        "experiment with QNN, int16; the optimizer stays in fp32",
    )
    _add_coreml(parser.add_argument_group("with --target coreml"))
    _add_qnn(parser.add_argument_group("with --target qnn"))
    parser.add_argument_group("with --target coreml --precision fp16, or qnn").add_argument(
        "--loss-scale",
        metavar="X",
        type=positive_number,
        help="multiplies the loss in fp16, lest small gradients vanish (default: 256)",
    )


def _add_coreml(group: Any) -> None:
    group.add_argument(
        "--ios",
        metavar="N",
        type=int,
        choices=(15, 16, 17, 18),
        help="the oldest release that runs it, 15 to 18 (default: 17)",
    )
    group.add_argument(
        "--compute-units",
        choices=("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"),
        help="what of the device may run it (default: all)",
    )


def _add_qnn(group: Any) -> None:
    group.add_argument(
        "--soc", metavar="NAME", help="Qualcomm's system on a chip (default: SM8650)"
    )
    group.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        help="with --precision int16: .safetensors, .npz or .pt with examples and targets of "
        "two batches at least; the program trains on them to see how far its values go",
    )
    group.add_argument(
        "--calibration-lr",
        metavar="X",
        type=positive_number,
        help="the learning rate of that (default: 0.01)",
    )


def check_target(options: argparse.Namespace) -> None:
    """Checks that no option of another target was given.

    Raises:
        UsageError: one was.
    """
    own = _OPTIONS.get(options.target, ())
    for name in sorted({name for names in _OPTIONS.values() for name in names}):
        if getattr(options, name) is not None and name not in own:
            able = " or ".join(target for target, names in _OPTIONS.items() if name in names)
            raise UsageError(f"{flag(name)} needs --target {able}, found {options.target}")
    precisions = _PRECISIONS.get(options.target, ())
    if options.precision is not None and options.precision not in precisions:
        raise UsageError(
            f"--target {options.target} has --precision {' or '.join(precisions)}, found "
            f"{options.precision}"
        )
    _check_calibration(options)
    is_single = options.target == "coreml" and options.precision != "fp16"
    if options.loss_scale is not None and is_single:
        raise UsageError("--loss-scale needs --precision fp16")


def _check_calibration(options: argparse.Namespace) -> None:
    is_whole = options.precision == "int16"
    for name in ("calibration", "calibration_lr"):
        if getattr(options, name) is not None and not is_whole:
            raise UsageError(f"{flag(name)} needs --target qnn --precision int16")
    if is_whole and options.calibration is None and not options.dry_run:
        raise UsageError(
            "--precision int16 needs --calibration FILE, with examples of two batches at least"
        )


def target_of(
    options: argparse.Namespace, *, dry_run: bool = False, calibration: Sequence[object] = ()
) -> "str | Target":
    """Returns the target: its name, or what the options make of it.

    `calibration` is the batches of the file that the option of that name tells.

    Raises:
        UsageError: an option is out of its range.
    """
    if options.target not in _OPTIONS:
        return str(options.target)
    from pockmobile.targets import TARGETS as KNOWN

    given = {name: getattr(options, name) for name in _OPTIONS[options.target]}
    if dry_run:
        given |= _DRY.get(options.target, {})
    if "calibration" in given:
        given["calibration"] = calibration or None
    chosen = {name: value for name, value in given.items() if value is not None}
    return replace(KNOWN[options.target], **chosen)  # type: ignore[type-var]


_DRY: Final[Mapping[str, Mapping[str, object]]] = {"qnn": {"compiles": False}}
"""What a dry run spares, and can do without."""
