"""Every axis is tried in every seed, and every deviation once."""

from __future__ import annotations

from collections import Counter

import pytest

from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.deviations import deviations
from tests.oracle.selftest.settings import settings

AXES = {
    *("pair", "gqa", "vlay", "rope kind", "rope dim", "rope base", "rope offset", "scale", "linit base", "linit const"),
    *("lam form", "post scale", "norm kind", "norm extent", "affine", "eps", "order", "clamp", "renorm", "mask align"),
    *("mask off by one", "window", "lse base", "k1/k2 crossed", "V2-vs-V1", "ratio"),
}
"""Those of the study's section on diagnosis."""


@pytest.mark.parametrize("seed", range(4))
def test_every_axis_in_every_seed(seed: int) -> None:
    found = [d for setting in settings(seed) for d in setting.deviations]
    assert {d.axis for d in found} >= AXES
    names = Counter(d.name for d in found)
    assert set(names.values()) == {1}
    assert len(names) >= 85
    assert {"packed", "paged", "softcap"} <= {d.axis for d in found}
    assert {"window_one_less", "window_one_more", "signals_and_noises_in_the_other_order"} <= set(names)


def test_the_main_problem_has_all_of_its_deviations() -> None:
    for seed, preset in ((0, "hf_diffllama"), (1, "ms_v1")):
        main, *others = settings(seed)
        assert main.main
        assert not any(setting.main for setting in others)
        assert main.deviations == deviations(small_spec(preset))
    assert [settings(seed)[0].structure.keys for seed in range(4)] == [44, 44, 50, 50]
