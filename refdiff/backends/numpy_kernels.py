"""Fast twins for NumPy: same name and signature as the layer, held to it by a generated test."""

from __future__ import annotations
