"""The peers that `scripts/bench_peers.py` compares with, each for an interpreter of its own.

Nothing here imports torch, or anything of the package but its errors.
"""
