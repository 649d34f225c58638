"""The flags of training stand for fields that exist, with the defaults that those have."""

from __future__ import annotations

from dataclasses import fields

from refdiff.cli.options import build_parser
from refdiff.cli.train_flags import SETTINGS, SIZES
from refdiff.model.config import DiffLlamaConfig
from refdiff.training.settings import Settings


def test_settings_and_their_defaults() -> None:
    args = build_parser().parse_args(["train", "text.txt", "-o", "out"])
    for entry in fields(Settings):
        assert getattr(args, entry.name) == entry.default, entry.name
    assert set(SETTINGS) <= {entry.name for entry in fields(Settings)}


def test_sizes_are_fields_of_the_config() -> None:
    assert set(SIZES) <= {entry.name for entry in fields(DiffLlamaConfig)}
