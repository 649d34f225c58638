"""Outputs by rows: sequences that are packed lie one below the other, and places are in words."""

from __future__ import annotations

import numpy as np

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import cases, small_spec
from refdiff.oracle.diagnosis.rows import Rows
from tests.oracle.diagnosis.test_places import right


def test_packed_sequences_are_taken_apart() -> None:
    spec = small_spec("hf_diffllama")
    case = cases("layout", 5, spec=spec, dtype="float32")[0]
    known = budget(spec, case.inputs, "float32", members=2)
    starts, y = np.asarray(case.inputs["cu_seqlens_q"]), known.expected["out"]
    rows = Rows.of(y, known)
    lengths = np.diff(starts)
    assert rows.actual.shape[0] == len(lengths)
    assert rows.actual.shape[2] == lengths.max()
    for n, length in enumerate(lengths):
        assert np.array_equal(rows.actual[n, :, :length], y[0, :, starts[n] : starts[n + 1]])
        assert rows.real[n].sum() == length * spec.heads
        assert not rows.actual[n, :, length:].any()


def test_a_place_in_words_and_by_axes() -> None:
    out, known = right("hf_diffllama", "float32")
    rows = Rows.of(out, known)
    assert rows.keys[0, 0].tolist() == list(range(1, 71))
    some = np.zeros_like(rows.real)
    some[1, 3, 32:64] = True
    place = rows.place(some, rows.real)
    assert place.text == "tokens 32 to 63 of head 3 of sequence 1"
    assert place.shaped
    assert {axis: inside.tolist() for axis, (inside, _) in place.part.items()}["t"] == list(range(32, 64))
    assert set(place.part) == {"b", "h", "t"}
    columns = np.arange(out.shape[-1]) < 8
    assert rows.place(some, rows.real, columns).text.startswith("columns 0 to 7 of tokens 32 to 63")
    scattered = np.random.default_rng(0).random(some.shape) < 0.2
    assert not rows.place(scattered, rows.real).shaped
