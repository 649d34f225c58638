"""The catalogue as a whole: its names, axes and sources, and that each mistake in a derivative changes gradients."""

from __future__ import annotations

import numpy as np

from refdiff import layers
from refdiff.backends import ops_for, overlay
from refdiff.oracle.cases.fixed import cases, small_spec
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import CATALOGUE, LINKS, wrap
from refdiff.oracle.mistakes.catalogue import Mistake
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import ops_with
from refdiff.oracle.mistakes.listed import EVERY
from refdiff.oracle.truth.attention_operands import EXTRA_OPS
from refdiff.oracle.truth.backward import backward


def test_names_and_rows() -> None:
    names = [m.name for m in CATALOGUE]
    assert len(set(names)) == len(names) >= 40
    for m in CATALOGUE:
        assert m.what.endswith("."), m
        assert m.row or not m.link, f"{m}: a link, but to no row"
        assert m.layer in (*layers.__all__, *EXTRA_OPS)


def test_a_mistake_replaces_only_its_layers() -> None:
    m = Mistake("halved", "Half of it.", "rms_norm", "norm kind", lambda call: call() / 2)
    assert str(m) == "halved"
    ops = overlay(ops_for(), wrap(m))
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(ops.rms_norm(x, None, 0.1), layers.rms_norm(x, None, 0.1) / 2)
    assert ops.linear is layers.linear
    assert ops.softmax is layers.softmax


def test_every_link_is_that_of_a_mistake() -> None:
    made = {m.row for m in (*CATALOGUE, *EVERY) if m.row}
    assert made == set(LINKS)
    assert all(link.startswith("https://") for link in LINKS.values())


def test_every_mistake_in_a_derivative_changes_gradients_of_some_preset() -> None:
    left = {m.name: m for m in BACKWARD_MISTAKES}
    for spec in (small_spec("hf_diffllama").replace(gate="sigmoid"), small_spec("diff_v2")):
        for case in cases("discriminating", 5, spec=spec)[:2]:
            inputs, dout = as_float64(spec, case.inputs), case.dout.astype(np.float64)
            right = backward(spec, inputs, dout, ops_with(()))
            for m in list(left.values()):
                wrong = backward(spec, inputs, dout, ops_with((m,)))
                if any(np.abs(wrong[n] - y).max() > 0.01 * np.abs(y).max() for n, y in right.items()):
                    del left[m.name]
    assert not left
