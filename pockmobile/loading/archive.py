"""`torch.export` archives, read so that nothing in them is executed.

`torch.export.load` alone does not promise that: it unpickles tensors and custom objects, opens
AOTInductor libraries, evaluates the expressions of dynamic shapes, resolves operators to any
attribute of torch, and builds Python source from the names of inputs. So everything that the
file says is checked first, by the reader and on the bytes that torch uses afterwards.
"""

import ast
import io
import json
import re
from pathlib import Path
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

# Not torch.export.load: that falls back to the unchecked format of torch 2.7.
from torch.export.pt2_archive._package import load_pt2

from pockmobile.errors import ModelFileError
from pockmobile.loading.operators import is_operator_name, unknown_operator

_ENTRY: Final = re.compile(
    r"models/model\.json|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/sample_inputs/model\.pt"
    r"|extra/.*|archive_format|archive_version|version|byteorder"
    r"|\.data/\w+|\.format_version|\.storage_alignment"
)
# What may stand in Python source, bare or quoted, without ever being a call or a literal.
_NAME: Final = re.compile(r"[\w.+\-]*")
_TREE_TYPES: Final = (
    None,
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
)
# Notes on nodes and modules, which torch keeps and never evaluates.
_NOTES: Final = (
    *("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"),
)
# What torch puts between quotes, in the source of guards.
_QUOTABLE: Final = re.compile(r"[^'\"\\\r\n]*")
_EXPRESSION_NODES: Final = (
    ast.Expression,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.Call,
    ast.keyword,
    ast.Subscript,
    ast.Attribute,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)
_EXPRESSION_NAME: Final = re.compile(
    r"L|math|[suz]u?f?\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Abs|And|Or|Not|Eq"
    r"|Ne|Equality|Unequality|(Strict)?(Less|Greater)Than|(Python)?Mod|(Floor|Ceil|Clean)Div"
    r"|(Ceil|Floor|Trunc|Round)ToInt|TruncToFloat|ToFloat|ModularIndexing|Where|[LR]Shift"
    r"|PowByNatural|FloatPow|(Float|Int)TrueDiv|Identity|min|max"
)
_EXPRESSION_ATTRIBUTES: Final = frozenset({"size", "inf", "nan", "isnan"})


def load_archive(path: Path) -> ExportedProgram:
    """Reads what `torch.export.save` wrote.

    Raises:
        ModelFileError: damaged, of another version of torch, or with anything in it that
            would have to be executed.
    """
    data = path.read_bytes()
    try:
        _check_archive(PT2ArchiveReader(io.BytesIO(data)))
        exported = load_pt2(io.BytesIO(data)).exported_programs["model"]
    except _RefusedError as refusal:
        raise ModelFileError(
            f"{path} is refused, because reading it could run code: {refusal}; export the "
            f"model on this machine, or give a state dict with --model"
        ) from refusal
    # torch raises anything from AssertionError to SerializeError on a damaged file.
    except Exception as error:
        raise ModelFileError(
            f"{path} cannot be read by torch {torch.__version__} ({_first_line(error)}); "
            f"export the model again with this version"
        ) from error
    unknown = unknown_operator(exported.graph_module)
    if unknown is not None:
        raise ModelFileError(f"{path} is refused: it calls {unknown}, which is no operator")
    return exported


class _RefusedError(Exception):
    """Says what in the archive could run code."""


def _check_archive(archive: PT2ArchiveReader) -> None:
    for name in archive.get_file_names():
        if not _ENTRY.fullmatch(name):
            raise _RefusedError(f"it holds {name}, which torch.export.save does not write")
    for kind in ("weights", "constants"):
        config = json.loads(archive.read_bytes(f"data/{kind}/model_{kind}_config.json"))
        for name, entry in config["config"].items():
            if entry["use_pickle"] or not _is_tensor_file(entry["path_name"]):
                raise _RefusedError(f"{name} is a pickle")
    _check_example_inputs(archive.read_bytes("data/sample_inputs/model.pt"))
    _check_value("", json.loads(archive.read_bytes("models/model.json")))


def _is_tensor_file(name: str) -> bool:
    return re.fullmatch(r"(weight|tensor)_\d+", name) is not None


def _check_example_inputs(data: bytes) -> None:
    # torch tries the same and falls back to unpickling: what passes here never falls back.
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise _RefusedError("its example inputs are more than plain tensors") from error


def _check_value(key: str, value: Any) -> None:
    """Refuses every text in the JSON that torch could evaluate, resolve or put into source."""
    if isinstance(value, dict):
        for name, child in value.items():
            _KEY_CHECKS.get(key, _check_name)(name)
            _check_value(name, child)
    elif isinstance(value, list):
        for child in value:
            _check_value(key, child)
    elif isinstance(value, str):
        _TEXT_CHECKS.get(key, _check_name)(value)


def _accept(text: str) -> None:
    """For notes: any text will do."""


def _check_name(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise _RefusedError(f"{text[:60]!r} is no name")


def _check_quotable(text: str) -> None:
    if not _QUOTABLE.fullmatch(text):
        raise _RefusedError(f"the text {text[:60]!r} holds quotes")


def _check_operator(text: str) -> None:
    if not is_operator_name(text):
        raise _RefusedError(f"{text[:60]!r} is no operator")


def _check_expression(text: str) -> None:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, RecursionError, ValueError):
        raise _RefusedError(f"{text[:60]!r} is no expression of sizes") from None
    if not all(map(_is_plain, nodes)):
        raise _RefusedError(f"{text[:60]!r} is more than an expression of sizes")


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return _EXPRESSION_NAME.fullmatch(name) is not None
        case ast.Constant(value=str() as text):
            return text.isidentifier()
        case ast.Attribute(attr=attribute):
            return attribute in _EXPRESSION_ATTRIBUTES
        case _:
            return isinstance(node, _EXPRESSION_NODES)


def _check_tree(text: str) -> None:
    """Checks the structure of inputs or outputs: JSON with JSON inside (the keys of a dict)."""
    _, tree = json.loads(text)
    pending = [tree]
    while pending:
        node = pending.pop()
        if node["type"] not in _TREE_TYPES:
            raise _RefusedError(f"its inputs or outputs hold a {node['type']}")
        _check_value("", json.loads(node["context"] or "null"))
        pending += node["children_spec"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


_KEY_CHECKS: Final = {"range_constraints": _check_expression}
_TEXT_CHECKS: Final = {
    **dict.fromkeys(_NOTES, _accept),
    "target": _check_operator,
    "as_operator": _check_operator,
    "as_string": _check_quotable,
    "as_strings": _check_quotable,
    "expr_str": _check_expression,
    "guards_code": _check_expression,
    "in_spec": _check_tree,
    "out_spec": _check_tree,
}
