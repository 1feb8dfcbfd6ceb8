"""Reads and writes frozen dataclasses as JSON values, with errors that name the place."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pockmobile.errors import ArtifactError


def encode(value: object) -> object:
    """Returns `value` (dataclasses, tuples, mappings, scalars) as what `json.dumps` takes."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(hint: Any, value: object, where: str) -> Any:
    """Returns the JSON `value` as the type `hint`; fields that the type lacks are ignored.

    `hint` is a dataclass, `tuple[T, ...]`, `Mapping[str, T]`, a union, a Literal, a scalar
    type, or `object` for any value.

    Raises:
        ArtifactError: a field is missing or has another type; the message says `where`.
    """
    if hint is object:
        return value
    if dataclasses.is_dataclass(hint):
        return _decode_record(hint, value, where)
    origin = get_origin(hint)
    if origin in _DECODERS:
        return _DECODERS[origin](hint, value, where)
    if not _is_scalar(hint, value):
        raise _wrong(hint, value, where)
    return float(value) if hint is float else value  # type: ignore[arg-type]


def _decode_record(hint: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(hint, value, where)
    hints = get_type_hints(hint)
    optional = {field.name for field in dataclasses.fields(hint) if _has_default(field)}
    for name in hints:
        if name not in value and name not in optional:
            raise ArtifactError(f"{where} has no field {name!r}; export the model again")
    present = [name for name in hints if name in value]
    return hint(
        **{name: decode(hints[name], value[name], f"{where}.{name}") for name in present}
    )


def _has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a program that was made before the field was added can be read."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _decode_list(hint: Any, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(hint, value, where)
    item = get_args(hint)[0]
    return tuple(decode(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))


def _decode_mapping(hint: Any, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(hint, value, where)
    item = get_args(hint)[1]
    return {key: decode(item, entry, f"{where}.{key}") for key, entry in value.items()}


def _decode_union(hint: Any, value: object, where: str) -> Any:
    for option in get_args(hint):
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return decode(option, value, where)
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if isinstance(option, type) and _is_scalar(option, value):
            return value
    raise _wrong(hint, value, where)


def _decode_literal(hint: Any, value: object, where: str) -> Any:
    if not isinstance(value, str) or value not in get_args(hint):
        raise _wrong(hint, value, where)
    return value


_DECODERS: Final[Mapping[Any, Callable[[Any, object, str], Any]]] = {
    tuple: _decode_list,
    Mapping: _decode_mapping,
    Union: _decode_union,
    types.UnionType: _decode_union,
    Literal: _decode_literal,
}


def _is_scalar(hint: Any, value: object) -> bool:
    if isinstance(value, bool):  # which Python counts as an int
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _wrong(hint: Any, value: object, where: str) -> ArtifactError:
    return ArtifactError(
        f"{where} is {_shown(value)}, expected {_describe(hint)}; export the model again"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _describe(hint: Any) -> str:
    if hint in (None, types.NoneType):
        return "null"
    if dataclasses.is_dataclass(hint):
        return "an object"
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in args)
    if origin is Literal:
        return " or ".join(repr(option) for option in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    return "an object" if origin is Mapping else str(hint.__name__)
