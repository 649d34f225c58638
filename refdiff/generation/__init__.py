"""Logits to text."""

from refdiff.generation.generate import generate

__all__ = ["generate"]
