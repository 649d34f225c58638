"""Large cases: what is tried on parts of them, how little on the whole, and that the names are right all the same."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Case, Ranking, Spec, blind_spots, deviations, diagnose, truth
from refdiff.oracle.deviations import deviation
from refdiff.oracle.diagnosis import variants
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE
from refdiff.oracle.strategies import Structure
from tests.oracle.diagnosis.outputs import kernel, natural, rounded

SPEC = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3)
T = 150
ALIKE = (
    {"powers_of_two", "scores_scaled_by_the_root_of_2d"},
    {"epsilon_of_1e-6", "epsilon_left_out"},
)
"""Deviations that `case()` does not tell apart in bfloat16."""
ORDERS = 7
"""Of roundings, in which a candidate is judged that fits."""


@lru_cache(maxsize=4)
def case(dtype: str = "bfloat16", queries: int = T, keys: int = T, profile: str = "natural") -> Case:
    return natural(SPEC, Structure(1, queries, keys), dtype, profile)


def wrong(*names: str, of: Case) -> np.ndarray:
    return kernel(of, [d for d in deviations(SPEC) if d.name in names])


def ask(out: np.ndarray, of: Case, most: int = 2) -> Ranking:
    return diagnose(out, of.spec, of.inputs, recipe=of.dtype, max_deviations=most)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is computed of all tokens: how often rounded, and how often as it is."""
    count = Counter[str]()

    def counted(name: str, f: Any, place: int) -> Any:
        def call(*args: Any) -> Any:
            inputs = args[place] if place else args[0].inputs
            count[name] += inputs["q"].shape[2] == T
            return f(*args)

        return call

    monkeypatch.setattr(variants, "_rounded", counted("rounded", variants._rounded, 0))
    monkeypatch.setattr(deviation, "forward", counted("exact", deviation.forward, 1))
    return count


@pytest.mark.parametrize("value", [0.0, np.nan, 1.5])
def test_of_one_tile_that_is_wrong_nothing_is_judged_on_the_whole(done: Counter[str], value: float) -> None:
    out = wrong(of=case())
    out[0, 3, 64:96] = value if value != 1.5 else value * out[0, 3, 64:96]
    found = ask(out, case())
    assert found.status == NONE_FITS
    assert "in tokens 64 to 95 of head 3" in found.where[0]
    assert not found.fits
    assert not found.candidates
    assert done["rounded"] == 0
    assert done["exact"] < 15


@pytest.mark.parametrize("name", ["layer_norm", "one_future_token_seen"])
def test_one_name_is_judged_once_on_the_whole(done: Counter[str], name: str) -> None:
    found = ask(wrong(name, of=case()), case(), most=1)
    assert (found.status, found.name) == (UNIQUE, name)
    assert done["rounded"] <= ORDERS + 2 * len(variants.FIRST)
    assert done["exact"] < 40


def _share(out: np.ndarray, other: np.ndarray, of: Case) -> float:
    """Of the squared difference from the truth, what is gone."""
    y = truth(of.spec, of.inputs).out
    return 1 - float(np.sum((out - other) ** 2) / np.sum((out - y) ** 2))


def test_what_is_shown_explains_its_share_of_the_whole() -> None:
    """A mask by blocks of 16 is, on the last rows alone, that of a kernel without a causal mask."""
    of = case("float32")
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    out = rounded(SPEC.replace(causal="none"), {**of.inputs, "mask": (s <= t) | (s // 16 == t // 16)})["out"]
    assert _share(out, truth(SPEC.replace(causal="none"), of.inputs).out, of) < 0
    found = ask(out, of, most=1)
    assert found.status == NONE_FITS
    assert "no_causal_mask" not in {c.name for c in found.candidates}, str(found)
    for c in found.candidates:
        assert c.explains == pytest.approx(_share(out, wrong(c.name, of=of), of), abs=1e-3)


@pytest.mark.slow
def test_nothing_is_to_be_mended_that_does_not_explain_most() -> None:
    """Three fields are wrong, and the norm is right, though leaving it out explains half."""
    of = natural(
        Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=32, layer=3), Structure(1, 128, 128), "float32"
    )
    out = rounded(of.spec.replace(rope="interleaved", pairing="interleaved", layer=5), of.inputs)["out"]
    found = ask(out, of)
    assert found.status == NONE_FITS
    assert not found.candidates, str(found)
    assert not any("first mend" in note for note in found.notes), str(found)


@pytest.mark.slow
def test_a_right_output_and_what_it_could_not_show(done: Counter[str]) -> None:
    found = ask(wrong(of=case()), case())
    assert found.status == NO_DEVIATION
    assert done["exact"] < 50
    hidden = {d.name for d in blind_spots(SPEC, case().inputs, "bfloat16")}
    (note,) = found.notes
    said = re.fullmatch(r"these inputs could not show (\d+) deviations: (.+)", note)
    names = said[2].split(", ")
    assert len(names) == int(said[1])
    assert set(names) == hidden


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.nightly), "bfloat16"])
def test_two_together_are_named(dtype: str) -> None:
    for names in (("layer_norm", "scale_left_out"), ("keys_crossed", "one_future_token_seen")):
        found = ask(wrong(*names, of=case(dtype)), case(dtype))
        assert found.status == UNIQUE
        assert {d.name for d in found.candidates[0].deviations} == set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "keys", "profile", "every"),
    [
        ("bfloat16", T, "natural", 4),
        pytest.param("bfloat16", T, "natural", 1, marks=pytest.mark.nightly),
        pytest.param("float32", T + 20, "discriminating", 1, marks=pytest.mark.nightly),
    ],
)
def test_all_singles_are_named(dtype: str, keys: int, profile: str, every: int) -> None:
    """Or they are hidden. Another name is given beside the right one only, with a separating case.

    In bfloat16 such pairs are 2^z for e^z, which scales scores by 0.69, and the scale 1/√2d, by 0.71; and two values of
    ε, 10⁻⁶ and 0, where 10⁻⁵ is meant.
    """
    of = case(dtype, T, keys, profile)
    hidden = {d.name for d in blind_spots(SPEC, of.inputs, dtype)}
    answers = {}
    for n, d in list(enumerate(deviations(SPEC)))[::every]:
        out = kernel(of, [d], n)
        if out is not None:
            answers[d.name] = ask(out, of, most=1)
    assert len(answers) > 50 // every
    unnamed = {name: found for name, found in answers.items() if found.name != name}
    several = {name: found for name, found in unnamed.items() if found.status == AMBIGUOUS}
    for name, found in several.items():
        assert name in {candidate.name for candidate in found.candidates}, found
        assert found.separating, found
        assert {candidate.name for candidate in found.candidates} in ALIKE
    unseen = {name: found.status for name, found in unnamed.items() if name not in several}
    assert set(unseen.values()) <= {NO_DEVIATION}, unseen
    assert set(unseen) <= hidden
