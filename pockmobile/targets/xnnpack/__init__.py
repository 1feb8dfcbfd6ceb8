"""The XNNPACK target: fp32 on phone CPUs."""

from pockmobile.targets.xnnpack.target import Xnnpack

__all__ = ["Xnnpack"]
