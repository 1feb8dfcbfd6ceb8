"""From a MIL program to a Core ML model package, in bytes that ExecuTorch's runtime reads."""

import contextlib
import gc
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import coremltools as ct
from executorch.backends.apple.coreml import executorchcoreml

from pockmobile.targets.coreml.tools import quiet

_PASSES: Final = (
    "common::noop_elimination",
    "common::fuse_matmul_weight_bias",
    "common::dead_code_elimination",
)
"""Of coremltools' passes, those that find anything: the graph was simplified before. After
each, a program of thousands of operators is checked for seconds."""

_ROOT: Final = "lowered_module"
"""The name of the folder, which is written, too."""
_MODEL: Final = "model.mlpackage"
_METADATA: Final = "metadata.json"


def write_package(
    program: Any, inputs: Sequence[str], outputs: Sequence[str], ios: int
) -> bytes:
    """Converts a MIL program into a model package, flattened into bytes.

    `inputs` and `outputs` are the names of the function's values, in the order in which the
    runtime passes them.
    """
    with quiet(), _old_objects_kept():
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
            compute_precision=ct.precision.FLOAT32,  # As written: no casts are put in.
            pass_pipeline=ct.PassPipeline(list(_PASSES), pipeline_name="pockmobile"),
            skip_model_load=True,
        )
    description = model.get_spec().description
    found = [feature.name for feature in (*description.input, *description.output)]
    assert sorted(found) == sorted([*inputs, *outputs]), f"coremltools renamed {found}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / _ROOT
        root.mkdir()
        model.save(str(root / _MODEL))
        return _flattened(root, {"inputNames": list(inputs), "outputNames": list(outputs)})


def join_packages(packages: Mapping[str, bytes]) -> bytes:
    """Joins flattened model packages into one, with a function of each one's name.

    Constants that several of them hold are stored once.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        parts = {name: _written(blob, Path(folder, name)) for name, blob in packages.items()}
        described = ct.utils.MultiFunctionDescriptor()
        for name, part in parts.items():
            described.add_function(str(part / _MODEL), "main", name)
        described.default_function_name = next(iter(parts))
        root = Path(folder, "joined") / _ROOT
        root.mkdir(parents=True)
        ct.utils.save_multifunction(described, str(root / _MODEL))
        names = {name: _names(part) for name, part in parts.items()}
        return _flattened(root, {"methods": names})


def _flattened(root: Path, metadata: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a folder that holds a model package, with what the runtime reads."""
    _settle(root / _MODEL)
    described = {**metadata, "identifier": f"pockmobile_{_sha256(root)}"}
    (root / _METADATA).write_text(json.dumps(described), encoding="utf-8")
    flattened = executorchcoreml.flatten_directory_contents(str(root.resolve()))
    assert flattened, "the model package is empty"
    return bytes(flattened)


def _written(blob: bytes, folder: Path) -> Path:
    """Writes a flattened folder into another one, and returns where it is."""
    folder.mkdir()
    assert executorchcoreml.unflatten_directory_contents(blob, str(folder))
    (root,) = folder.iterdir()
    return root


def _names(root: Path) -> Mapping[str, Any]:
    metadata = json.loads((root / _METADATA).read_text(encoding="utf-8"))
    return {key: metadata[key] for key in ("inputNames", "outputNames")}


@contextlib.contextmanager
def _old_objects_kept() -> Iterator[None]:
    """Spares coremltools' own collection of garbage all that torch keeps: half a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _settle(package: Path) -> None:
    """Replaces random identifiers and orders: the same model gives the same bytes."""
    (model,) = package.rglob("*.mlmodel")
    spec = ct.utils.load_spec(str(model))
    model.write_bytes(spec.SerializeToString(deterministic=True))
    path = package / "Manifest.json"
    text = path.read_text(encoding="utf-8")
    for identifier, item in json.loads(text)["itemInfoEntries"].items():
        settled = str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])).upper()
        text = text.replace(identifier, settled)
    path.write_text(json.dumps(json.loads(text), indent=4, sort_keys=True), encoding="utf-8")


def _sha256(folder: Path) -> str:
    """Returns the hash of a folder: the runtime keeps what it compiled under this name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
