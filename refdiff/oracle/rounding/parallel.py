"""One computation in many orders of its roundings: one after another, or of larger inputs one on each core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from refdiff.backends.numpy.thread_pool import Workers
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.rounding.evaluation_order import Order

Result = TypeVar("Result")
LEAST, MOST = 200_000, 8_000_000
"""Scores from which threads are worth their start, and up to which there is memory for several computations."""


def run_orders(work: Callable[[Order], Result], orders: Sequence[Order], inputs: Inputs) -> list[Result]:
    """Call `work(order)` for every order, and return the results as the orders stand."""
    if not LEAST <= scores(inputs) <= MOST:
        return [work(order) for order in orders]
    found: dict[int, Result] = {}

    def put(n: int) -> None:
        found[n] = work(orders[n])

    workers = Workers()
    with workers.running():
        workers.map(put, range(len(orders)))
    return [found[n] for n in range(len(orders))]


def scores(inputs: Inputs) -> int:
    """How many scores a core has, all heads and sequences together; 0 where keys come by pages, or from a layer."""
    if "q" not in inputs or "k" not in inputs:
        return 0
    B, H, T, _ = inputs["q"].shape
    return int(B * H * T * inputs["k"].shape[2])
