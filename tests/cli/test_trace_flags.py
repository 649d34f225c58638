"""The flags of `refdiff trace` are those of the functions that it calls."""

from __future__ import annotations

import argparse

from refdiff.cli.options import build_parser
from refdiff.oracle.rounding import FORMATS


def test_defaults() -> None:
    args = vars(build_parser().parse_args(["trace", "model", "text"]))
    assert (args["of"], args["prompt"], args["precision"], args["dtype"]) == ("model", "text", "auto", "auto")
    assert not [name for name in ("maps", "free", "json", "quiet", "compare", "output", "ids", "model") if args[name]]


def test_precisions() -> None:
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    flags = {a.dest: a.choices for a in commands.choices["trace"]._actions}
    assert set(flags["precision"] or ()) == {"auto", *FORMATS}
