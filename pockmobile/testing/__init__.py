"""Runs programs for a phone's accelerator where there is none, slowly, to check them."""

from pockmobile.testing.program import InterpretedProgram

__all__ = ["InterpretedProgram"]
