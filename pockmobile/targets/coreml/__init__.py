"""The Core ML target: the CPU, GPU and Neural Engine of iPhones and Macs."""

from pockmobile.targets.coreml.target import CoreML

__all__ = ["CoreML"]
