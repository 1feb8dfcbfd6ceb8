"""The joint graph: its type, its verifier, and how it is rewritten."""

from pockmobile.graph.joint import JointGraph, Port, Role
from pockmobile.graph.verify import verify

__all__ = ["JointGraph", "Port", "Role", "verify"]
