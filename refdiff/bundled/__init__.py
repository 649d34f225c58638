"""The small model that refdiff trained itself: what the first command uses, with no network.

Its card, README.md beside this file, says on what it was trained, by which command, and how well it does.
"""

from __future__ import annotations

from pathlib import Path

NAME = "bundled"
"""What stands for it wherever a folder or a hub repo is named."""

FOLDER = Path(__file__).parent
"""A checkpoint like any other: `DiffLlamaForCausalLM.from_pretrained(FOLDER)`."""
