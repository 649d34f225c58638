"""The bundled model: a small checkpoint, trained by refdiff, that needs no network.

Its model card is README.md beside this file: training text, command and validation loss.
"""

from __future__ import annotations

from pathlib import Path

NAME = "bundled"
"""The name that is accepted for it in place of a folder or a hub repo."""

FOLDER = Path(__file__).parent
"""The folder of its checkpoint: `DiffLlamaForCausalLM.from_pretrained(FOLDER)`."""
