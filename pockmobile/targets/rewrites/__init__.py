"""Decompositions that several targets share."""
