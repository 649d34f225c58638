"""The flags of `refdiff golden` are what the oracle has."""

from __future__ import annotations

from refdiff.cli import golden_flags
from refdiff.cli.options import build_parser
from refdiff.oracle.cases.fixed import PROFILES


def test_profiles() -> None:
    assert set(golden_flags.PROFILES) == set(PROFILES)


def test_defaults() -> None:
    args = vars(build_parser().parse_args(["golden", "export", "x"]))
    assert golden_flags.OF_EXPORT.items() <= args.items()
    assert (args["spec"], args["layer"], args["set"], args["recipe"]) == ("hf_diffllama", None, [], "auto")
    assert (args["profile"], args["dtype"], args["seed"]) == (None, "auto", 0)
    assert not [name for name in ("outputs", "npz", "no_gradients", "json", "core") if args[name]]
