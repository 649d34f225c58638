"""Orders side by side: the results stand as the orders do, and are those of one after another."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from refdiff.backends.numpy.thread_pool import Workers
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.rounding import parallel
from refdiff.oracle.rounding.evaluation_order import MEMBERS
from refdiff.oracle.rounding.parallel import run_orders, scores
from tests.oracle.example_inputs import draw, small


def test_small_inputs_keep_to_one_thread_and_large_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(small("hf_diffllama"))
    assert scores(inputs) == 2 * 12 * 5 * 7
    assert run_orders(lambda _: threading.current_thread(), MEMBERS, inputs) == [threading.current_thread()] * 8
    monkeypatch.setattr(parallel, "LEAST", 0)
    barrier = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(parallel, "Workers", lambda: Workers(2))
    found = run_orders(lambda order: (order, barrier.wait()), MEMBERS, inputs)
    assert [order for order, _ in found] == list(MEMBERS)
    monkeypatch.setattr(parallel, "MOST", 1)
    assert run_orders(lambda _: threading.current_thread(), MEMBERS, inputs) == [threading.current_thread()] * 8


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_budget_is_the_same(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, dtype=np.float32)
    one = budget(spec, inputs, dtype, members=4)
    monkeypatch.setattr(parallel, "LEAST", 0)
    other = budget(spec, inputs, dtype, members=4)
    assert np.array_equal(one.rows["out"], other.rows["out"])
    assert one.tensors["out"].slope == other.tensors["out"].slope


def test_other_kinds_count_nothing() -> None:
    spec = small("hf_diffllama")
    assert scores(draw(spec, layer=True)) == 0
