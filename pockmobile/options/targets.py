"""What runs a program: the options of targets that have some, and the target they make."""

import argparse
from typing import TYPE_CHECKING, Any, Final

from pockmobile.commands import positive_number
from pockmobile.errors import UsageError
from pockmobile.options.common import flag

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from pockmobile.targets import Target

TARGETS: Final = ("xnnpack", "coreml", "portable")
_COREML: Final = ("precision", "ios", "compute_units", "loss_scale")


def add_coreml_options(group: Any) -> None:
    """Adds what is chosen for Core ML."""
    group.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        help="fp16 for the Neural Engine; the optimizer stays in fp32 (default: fp32)",
    )
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
    group.add_argument(
        "--loss-scale",
        metavar="X",
        type=positive_number,
        help="multiplies the loss in fp16, lest small gradients vanish (default: 256)",
    )


def check_target(options: argparse.Namespace) -> None:
    """Checks that no option of another target was given.

    Raises:
        UsageError: one was.
    """
    for name in _COREML:
        if getattr(options, name) is not None and options.target != "coreml":
            raise UsageError(f"{flag(name)} needs --target coreml, found {options.target}")
    if options.loss_scale is not None and options.precision != "fp16":
        raise UsageError("--loss-scale needs --precision fp16")


def target_of(options: argparse.Namespace) -> "str | Target":
    """Returns the target: its name, or what the options make of it.

    Raises:
        UsageError: an option is out of its range.
    """
    if options.target != "coreml":
        return str(options.target)
    from pockmobile.targets.coreml import CoreML

    given = {name: getattr(options, name) for name in _COREML}
    return CoreML(**{name: value for name, value in given.items() if value is not None})
