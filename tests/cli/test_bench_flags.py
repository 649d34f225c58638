"""The flags of `refdiff bench`."""

from __future__ import annotations

from refdiff.bench.processes import SIDES
from refdiff.bench.sizes import LIKE as SIZES
from refdiff.cli.bench_flags import LIKE, PEERS
from refdiff.cli.options import build_parser


def test_choices_are_those_that_there_are() -> None:
    """They are written down there again, so that `--help` need not import what measures."""
    assert set(LIKE) == set(SIZES)
    assert set(PEERS) < set(SIDES)


def test_defaults() -> None:
    args = build_parser().parse_args(["bench"])
    assert (args.model, args.like, args.folder, args.against, args.rows, args.pairs) == (None,) * 6
    assert (args.threads, args.dtype, args.train, args.quick) == (0, "float32", False, False)
    args = build_parser().parse_args(["bench", "--against", "transformers", "--against", "onnxruntime"])
    assert args.against == ["transformers", "onnxruntime"]
