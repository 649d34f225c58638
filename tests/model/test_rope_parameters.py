"""How the spellings of the rotary settings are merged, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.layers.rope_frequencies import rope_frequencies
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.rope_parameters import check, resolve

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def resolved(rope_parameters: Any = None, original: Any = None, **legacy: Any) -> dict[str, Any]:
    return resolve(rope_parameters, legacy, 2048, original)


def test_nothing_given() -> None:
    assert resolved() == {"rope_type": "default", "rope_theta": 10000.0}


def test_rope_type_wins_over_type() -> None:
    assert resolved({"rope_type": "linear", "type": "dynamic", "factor": 2.0})["rope_type"] == "linear"


def test_rope_scaling_wins_over_rope_parameters_unless_it_is_empty() -> None:
    new = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 7.0}
    assert resolved(new, rope_scaling={"type": "linear", "factor": 2.0}) == {
        "type": "linear",
        "rope_type": "linear",
        "factor": 2.0,
        "rope_theta": 10000.0,
    }
    assert resolved(new, rope_scaling={}) == new
    assert resolved(new, rope_scaling=None) == new


def test_inside_wins_over_the_top_level() -> None:
    inside = {"rope_theta": 5.0, "partial_rotary_factor": 0.25}
    result = resolved(inside, rope_theta=6.0, partial_rotary_factor=0.5)
    assert (result["rope_theta"], result["partial_rotary_factor"]) == (5.0, 0.25)
    result = resolved({}, rope_theta=6.0, partial_rotary_factor=0.5)
    assert (result["rope_theta"], result["partial_rotary_factor"]) == (6.0, 0.5)
    assert "partial_rotary_factor" not in resolved({}, partial_rotary_factor=None)
    assert "partial_rotary_factor" not in resolved({"partial_rotary_factor": None})
    assert resolved({"partial_rotary_factor": None}, partial_rotary_factor=0.5)["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize("rope_type", ["llama3", "yarn", "longrope"])
def test_original_length_top_level_then_inside_then_the_maximum(rope_type: str) -> None:
    inside = {"rope_type": rope_type, "original_max_position_embeddings": 5}
    assert resolved(inside, original=7)["original_max_position_embeddings"] == 7
    assert resolved(inside)["original_max_position_embeddings"] == 5
    assert resolved({"rope_type": rope_type})["original_max_position_embeddings"] == 2048


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_settings_that_are_not_an_object(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got a list, expected an object"):
        DiffLlamaConfig(**{name: [1]})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 1.0],
    "original_max_position_embeddings": 512,
}  # fmt: skip
THREE = {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 512}
VALID: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 1e-30},
    {"rope_type": "default", "rope_theta": 1e30},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0},
    YARN,
    {**YARN, "factor": None, "original_max_position_embeddings": 512.0, "truncate": None},
    {**YARN, "factor": 4, "attention_factor": None, "beta_fast": 32, "beta_slow": None, "mscale": 0, "truncate": False},
    {**YARN, "factor": 1.0, "original_max_position_embeddings": 1, "beta_fast": 1, "mscale": None},
    {**YARN, "beta_fast": 7, "beta_slow": 7},
    {**YARN, "mscale_all_dim": None},
    {**YARN, "mscale_all_dim": 0, "beta_fast": 0, "beta_slow": 0},
    {**LONG, "short_factor": [1, 1.5], "long_factor": (2, 3.0), "factor": None, "attention_factor": 1.5},
    {**LONG, "original_max_position_embeddings": 1, "attention_factor": 1.0},
    THREE,
    {**THREE, "original_max_position_embeddings": 2047},
]


@pytest.mark.parametrize("rope", VALID, ids=str)
def test_valid_settings_pass_without_a_word(rope: dict[str, Any]) -> None:
    assert check({"rope_theta": 10000.0, **rope}, 4, 2048) == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "su"}, "rope_type: got 'su', expected one of default, linear"),
    ({"rope_type": "default", "rope_theta": None}, "rope_theta: got null, expected a number"),
    ({"rope_type": "default", "rope_theta": "10000"}, "rope_theta: got '10000', a string"),
    ({"rope_type": "default", "rope_theta": math.nan}, "rope_theta: got nan"),
    ({"rope_type": "default", "rope_theta": 10**5000}, "rope_theta: got an integer above 10\\^40"),
    ({"rope_type": "default", "partial_rotary_factor": -0.5}, "partial_rotary_factor: got -0.5"),
    ({"rope_type": "proportional", "partial_rotary_factor": 1.5}, "partial_rotary_factor: got 1.5, expected "),
    ({"rope_type": "linear"}, "got no factor, expected each with rope_type 'linear'"),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "use rope_type 'proportional'"),
    ({**YARN, "original_max_position_embeddings": 5.5}, "got 5.5, expected a whole number"),
    ({**YARN, "truncate": 1}, "truncate: got 1, expected true or false"),
    ({**YARN, "mscale": -1.0}, "mscale: got -1.0, expected 0, or 1e-30 to 1e30"),
    ({**YARN, "beta_fast": "32"}, "beta_fast: got '32'"),
    ({**YARN, "rope_theta": 1}, "rope_theta: got 1, expected another value: yarn"),
    ({"rope_type": "longrope", "original_max_position_embeddings": 5}, "got no short_factor, long_factor"),
    ({**LONG, "long_factor": [1.0, 0.0]}, r"long_factor\[1\]: got 0.0"),
    ({**LONG, "long_factor": [1.0]}, "long_factor: got 1 numbers, expected 2: half of head_dim 4"),
    ({**LONG, "original_max_position_embeddings": 1}, "original_max_position_embeddings: got 1, expected 2 or more"),
    (
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 5},
        "got no low_freq_factor, high_freq",
    ),
    ({**THREE, "high_freq_factor": 1.0}, "got 1.0 for high_freq_factor and low_freq_factor, expected two values"),
    ({"rope_type": "default", "rope_theta": 9e-31}, "rope_theta: got 9e-31, expected 1e-30 to 1e30"),
    ({"rope_type": "default", "rope_theta": 1.0001e30}, "rope_theta: got 1.0001e.30"),
    (
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.9},
        "got 0.9, expected 1 with rope_type 'linear'",
    ),
    ({**THREE, "low_freq_factor": 0}, "low_freq_factor: got 0, expected "),
    ({**LONG, "short_factor": [True, 1.0]}, r"short_factor\[0\]: got True, a boolean"),
]


@pytest.mark.parametrize(("rope", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_settings(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check({"rope_theta": 10000.0, **rope}, 4, 2048)


def test_lists_are_counted_before_they_are_read() -> None:
    with pytest.raises(ValueError, match="short_factor: got 400000 numbers, expected 2: half of head_dim 4"):
        check({"rope_theta": 10000.0, **LONG, "short_factor": ["x"] * 400_000}, 4, 2048)


def test_dynamic_needs_more_than_one_pair() -> None:
    with pytest.raises(ValueError, match="head_dim: got 2, expected 4 or more: rope_type 'dynamic'"):
        check({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, 2, 2048)
    assert check({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, 2, 2048) == []


ANYTHING: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 1, 2.0, -1, 0.5, 1e-30, 1e30, "2", [1.0, 2.0], [1.0], {}, math.nan]
)
NAMES = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "attention_factor")
MORE = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "partial_rotary_factor", "rope_theta")


@settings(max_examples=16 * settings().max_examples)
@given(
    st.sampled_from([*VALID, YARN, LONG, THREE]),
    st.dictionaries(st.sampled_from([*NAMES, *MORE, "short_factor", "long_factor"]), ANYTHING, max_size=4),
    st.sampled_from([2, 4]),
)
def test_settings_that_pass_the_check_give_finite_frequencies(
    valid: dict[str, Any], changes: dict[str, Any], head_dim: int
) -> None:
    try:
        rope = resolve({**valid, **changes}, {}, 2048, None)
        check(rope, head_dim, 2048)
    except ValueError:
        return
    for length in (0, 1, 10_000_000):
        frequencies, scale = rope_frequencies(rope, head_dim, 2048, length)
        assert len(frequencies) == head_dim // 2
        assert all(map(math.isfinite, [*frequencies, scale]))


MANY = [f"name{i}" for i in range(100, 200)]
REMARKS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {**YARN, "factor": 0.5, "beta_slow": 33, "foo": 1},
        [
            "rope_parameters.factor is 0.5, below 1, which shortens the context",
            "rope_parameters.beta_fast is below beta_slow",
            "rope_type 'yarn' does not use rope_parameters.{foo}",
        ],
    ),
    (
        {**THREE, "low_freq_factor": 5.0, "original_max_position_embeddings": 2049},
        [
            "rope_parameters.high_freq_factor is below low_freq_factor",
            "rope_parameters.original_max_position_embeddings is 2049, not below max_position_embeddings 2048",
        ],
    ),
    ({**YARN, "beta_fast": 2, "beta_slow": 3}, ["rope_parameters.beta_fast is below beta_slow"]),
    (
        {"rope_type": "default", **dict.fromkeys(f"name{i}" for i in range(100, 200))},
        [
            f"rope_type 'default' does not use rope_parameters.{{{', '.join(f'name{i}' for i in range(100, 200))}}}"[
                :500
            ]
        ],
    ),
    ({**YARN, "beta_fast": None, "beta_slow": 32.5}, ["rope_parameters.beta_fast is below beta_slow"]),
    (
        {"rope_type": "linear", "factor": 2.0, "a": 1, "b\n": 2},
        [r"rope_type 'linear' does not use rope_parameters.{'b\n', a}"],
    ),
    (
        {**THREE, "original_max_position_embeddings": 2048},
        ["rope_parameters.original_max_position_embeddings is 2048, not below max_position_embeddings 2048"],
    ),
    (
        {"rope_type": "default", "partial_rotary_factor": 0.5, "a": 1},
        ["rope_type 'default' does not use rope_parameters.{a, partial_rotary_factor}"],
    ),
]


@pytest.mark.parametrize(("rope", "remarks"), REMARKS, ids=str)
def test_remarks_word_for_word(rope: dict[str, Any], remarks: list[str]) -> None:
    assert check({"rope_theta": 10000.0, **rope}, 4, 2048) == remarks
