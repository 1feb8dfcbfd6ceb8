"""The systems on a chip that ExecuTorch names, and what their Hexagon processors can do."""

from typing import Any, Final

from pockmobile.errors import UsageError, nearest

_LEAST: Final = {"fp16": 69, "int16": 73}
"""The Hexagon version that has it; the simulator takes older ones for such all the same."""
_CALLED: Final = {"fp16": "float16", "int16": "a product of 16-bit numbers"}


def chipset_of(name: str, precision: str = "fp16") -> Any:
    """Returns ExecuTorch's number of a system on a chip that computes in a precision.

    Raises:
        UsageError: ExecuTorch does not name it, or its processor has not that precision.
    """
    from executorch.backends.qualcomm.serialization import qc_schema

    table = qc_schema._soc_info_table
    versions = {chip.name: int(info.htp_info.htp_arch) for chip, info in table.items()}
    if name not in versions:
        raise UsageError(f"unknown SoC {name!r}: {nearest(name, versions)}")
    least = _LEAST[precision]
    if versions[name] < least:
        able = sorted(n for n, version in versions.items() if version >= least)
        raise UsageError(
            f"SoC {name} has a Hexagon v{versions[name]}; {_CALLED[precision]} needs v{least}: "
            f"choose one of {', '.join(able)}, or target xnnpack"
        )
    return qc_schema.QcomChipset[name]
