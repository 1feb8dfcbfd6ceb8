"""The systems on a chip that ExecuTorch names, and what their Hexagon processors can do."""

from typing import Any, Final

from pockmobile.errors import UsageError, nearest

_LEAST_FOR_FP16: Final = 69
"""The Hexagon version that has float16; the simulator takes it for older ones all the same."""


def chipset_of(name: str) -> Any:
    """Returns ExecuTorch's number of a system on a chip that computes in float16.

    Raises:
        UsageError: ExecuTorch does not name it, or its processor has no float16.
    """
    from executorch.backends.qualcomm.serialization import qc_schema

    table = qc_schema._soc_info_table
    versions = {chip.name: int(info.htp_info.htp_arch) for chip, info in table.items()}
    if name not in versions:
        raise UsageError(f"unknown SoC {name!r}: {nearest(name, versions)}")
    if versions[name] < _LEAST_FOR_FP16:
        able = sorted(n for n, version in versions.items() if version >= _LEAST_FOR_FP16)
        raise UsageError(
            f"SoC {name} has a Hexagon v{versions[name]}; float16 needs v{_LEAST_FOR_FP16}: "
            f"choose one of {', '.join(able)}, or target xnnpack"
        )
    return qc_schema.QcomChipset[name]
