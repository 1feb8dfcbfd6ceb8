"""Qualcomm's Hexagon processor (HTP), through ExecuTorch's QNN backend."""

from pockmobile.targets.qnn.target import Qnn

__all__ = ["Qnn"]
