"""The catalogue as a whole: its names, axes and sources, how a mistake is planted, that property tests notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for, overlay
from refdiff.oracle.mistakes import CATALOGUE, LINKS, wrap
from refdiff.oracle.mistakes.catalogue import Call, Mistake
from refdiff.oracle.mistakes.listed import EVERY
from refdiff.oracle.truth.attention_operands import EXTRA_OPS

ROOT = Path(__file__).parents[3]


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


@pytest.mark.slow
def test_the_property_tests_notice_every_mistake(outside: dict[str, str]) -> None:
    """Without golden values and without transformers."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle.mistakes"],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(m.layer in layers.__all__ for m in CATALOGUE)
    assert f"{count} of {count} noticed" in done.stdout
    print(done.stdout)


def test_every_link_is_that_of_a_mistake() -> None:
    made = {m.row for m in (*CATALOGUE, *EVERY) if m.row}
    assert made == set(LINKS)
    assert all(link.startswith("https://") for link in LINKS.values())


def test_a_call_has_its_arguments_by_name() -> None:
    seen: list[tuple[Any, ...]] = []
    call = Call(lambda *args, **options: seen.append((args, options)), "rope", (1, 2), {"sin": 3})
    assert (call.x, call.sin, call.interleaved, set(call.given)) == (1, 3, False, {"x", "cos", "sin"})
    call(x=4, interleaved=True)
    call()
    assert seen == [((4, 2, 3), {"interleaved": True}), ((1, 2, 3), {})]
    with pytest.raises(AttributeError, match="no argument 'sine'"):
        _ = call.sine
