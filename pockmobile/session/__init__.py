"""Training and prediction with an exported program; imports nothing of the compiler."""

from pockmobile.session.latents import Latents
from pockmobile.session.session import EvaluationResult, Session

__all__ = ["EvaluationResult", "Latents", "Session"]
