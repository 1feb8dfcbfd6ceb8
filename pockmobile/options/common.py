"""Model, training and optimizer: options, checks, and what the options make."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pockmobile.artifact.files import atomic_write
from pockmobile.commands import positive_integer, positive_number
from pockmobile.errors import UsageError

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from torch import Tensor

    from pockmobile.loading.models import LoadedModel
    from pockmobile.optim import Optimizer

_CONSTANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "sgd": ("weight_decay",),
    "momentum": ("momentum", "nesterov", "weight_decay"),
    "adamw": ("betas", "eps", "weight_decay"),
    "lion": ("betas", "weight_decay"),
}


def add_model_options(group: Any) -> None:
    """Adds where the model comes from, and the batch of a training step."""
    group.add_argument(
        "--model", metavar="MODULE:FUNCTION", help="returns the module that a state dict fits"
    )
    group.add_argument(
        "--trust-pickle", action="store_true", help="allow MODEL to run code when it is loaded"
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        type=positive_integer,
        help="examples in a training step (default: the examples' own, or 8)",
    )


def add_training_options(group: Any, targets: Sequence[str] = ("xnnpack", "portable")) -> None:
    """Adds the loss and the target."""
    group.add_argument(
        "--loss",
        default="cross_entropy",
        help="cross_entropy, next_token, mse, bce, contrastive, sigmoid_contrastive or "
        "MODULE:FUNCTION (default: cross_entropy)",
    )
    group.add_argument(
        "--target",
        choices=tuple(targets),
        default="xnnpack",
        help="what runs it (default: xnnpack)",
    )


def add_program_options(group: Any) -> None:
    """Adds what is trained, and how frozen weights and the loss are held."""
    group.add_argument(
        "--frozen-weights",
        choices=("fp32", "int8", "int4"),
        default="fp32",
        help="int8 takes less room and time where much is frozen; losses differ by about 1 %%. "
        "int4 takes less memory and more time than int8, for linear layers; by about 2 %% "
        "(default: fp32)",
    )
    group.add_argument(
        "--loss-chunk",
        metavar="N",
        type=_whole_number,
        help="classes that a label is chosen among whose logits are in memory at once, 0 for "
        "all (default: chosen where all would take more than 12 MiB)",
    )


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def add_optimizer_options(group: Any) -> None:
    """Adds the optimizer and its constants."""
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


def constants(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the optimizer's constants that were given.

    Raises:
        UsageError: one of another optimizer was given.
    """
    own = _CONSTANTS[options.optimizer]
    names = sorted({name for names in _CONSTANTS.values() for name in names})
    given = {
        name: getattr(options, name) for name in names if getattr(options, name) is not None
    }
    for name in given:
        if name not in own:
            raise UsageError(
                f"{flag(name)} does not belong to {options.optimizer}, which takes "
                f"{', '.join(map(flag, own))}; it belongs to "
                f"{' and '.join(other for other in _CONSTANTS if name in _CONSTANTS[other])}"
            )
    return given


def check_output(path: Path, flag: str, kept: Mapping[str, Path | None]) -> None:
    """Checks that a file can be written there; `kept` are the files that must stay.

    Raises:
        UsageError: it cannot, or one of them would be overwritten.
    """
    for name, other in kept.items():
        if path == other:
            raise UsageError(f"{path} would overwrite {name}; choose another {flag}")
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        found = path if path.is_dir() else folder
        expected = "is a directory" if found.is_dir() else "is no directory"
        raise UsageError(f"cannot write {path}: {found} {expected}")


def flag(name: str) -> str:
    """Returns an option as it is written."""
    return "--" + name.replace("_", "-")


def optimizer_of(options: argparse.Namespace) -> "Optimizer":
    """Returns the optimizer.

    Raises:
        UsageError: a constant is out of its range.
    """
    from pockmobile.optim import OPTIMIZERS

    return OPTIMIZERS[options.optimizer](**constants(options))


def loss_of(options: argparse.Namespace) -> "str | Callable[..., Tensor]":
    """Returns the loss: the name of ours, or the user's function.

    Raises:
        UsageError: there is no such function.
    """
    from pockmobile.loading.factory import parse_factory

    loss: str = options.loss
    return parse_factory(loss) if ":" in loss else loss


def load(options: argparse.Namespace) -> "LoadedModel":
    """Returns the model.

    Raises:
        UsageError: it cannot be loaded.
    """
    from pockmobile.loading.models import load_model

    return load_model(
        options.path, model_factory=options.model, trust_pickle=options.trust_pickle
    )


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
