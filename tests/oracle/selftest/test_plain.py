"""The selftest of plain attention: its problems, and one of them judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refdiff.oracle import Recipe
from tests.oracle.selftest import plain
from tests.oracle.selftest.one_case import one_case


@pytest.mark.slow
def test_some_of_a_problem() -> None:
    main = plain.settings(1)[0]
    table = one_case(1, Recipe("bfloat16"), "natural", "bfloat16", (replace(main, deviations=main.deviations[::4]),))
    ours = table.total(rule="rows")
    assert ours.own_refused == 0, table.refusals
    assert ours.identifiable > 30
    assert ours.killed_identifiable >= 0.97 * ours.identifiable
    assert {key[0] for key in table.by_name} == {"forward", "backward", "lse"}
