"""The catalogue and the table of deviations, and what an input cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.oracle import Mistake, Spec, blind_spots, cases, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw as draw_values
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import CATALOGUE, LINKS
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import deviated, is_same_output, ops_with, output
from refdiff.oracle.mistakes.listed import EVERY, KINDS, RARE_DEVIATIONS, draw_probes
from refdiff.oracle.spec.presets import PRESETS, YARN
from refdiff.oracle.truth.attention_operands import EXTRA_OPS
from refdiff.oracle.truth.backward import backward
from tests.oracle.example_inputs import draw, small

HF = small("hf_diffllama")
SPECS = [
    *(small(name) for name in PRESETS),
    small("hf_diffllama", group_order="tiled", softcap=2.0, window=3, causal="top_left", masked_rows="uniform"),
    small("attention", group_order="tiled", v_head_dim=4, sinks=True),
    small("hf_diffllama", norm_over="all_heads", norm_eps=1e-6, sinks=True),
    small("hf_diffllama", partial_rotary_factor=0.7, rotary_at="last"),
    small("hf_diffllama", rope_parameters=YARN, scale=0.3),
    small("hf_diffllama", rope_parameters={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}),
    small("hf_diffllama", qk_norm="rms", qk_norm_weight=True, lambda_per_head=True, gate="sigmoid"),
    small("ms_v1", qk_norm="layer", qk_norm_at="after_rope", norm="layer", norm_bias=True, norm_per_head=True),
    small("ms_v1", gate="linear"),
    small("ms_v1", gate="silu", causal="top_left"),
]
GIVEN: dict[str, Any] = {
    "mask": np.tri(5, 7, 2, dtype=np.bool_)[:, ::-1],
    "bias": np.arange(7.0),
    "q_positions": np.array([[9, 3, 5, 2, 8]]),
}
"""Inputs that no probe has."""
SOME_LONG = Structure(1, 40, 40)


def some_inputs(spec: Spec) -> Iterator[Inputs]:
    """Yield the probes of all kinds, inputs that few kernels have, and long ones with large scores."""
    yield from (x for kind in KINDS for x in draw_probes(spec, kind))
    if spec in (HF, SPECS[len(PRESETS) + 2]):
        yield from ({**draw(spec), name: x} for name, x in GIVEN.items())
        yield draw_values(spec, Structure(1, 280, 280), "natural", 3)
        yield {name: 30.0 * x if name == "q" else x for name, x in draw_values(spec, SOME_LONG, "natural", 3).items()}


def test_each_is_another_function_of_the_same_shape_for_some_spec() -> None:
    left = {d.name: d for d in (*EVERY, *RARE_DEVIATIONS)}
    for spec in SPECS:
        for x in some_inputs(spec):
            right = output(Kernel(spec, x))
            for d in list(left.values()):
                wrong = output(deviated(spec, x, [d]))
                assert wrong is None or wrong.shape == right.shape, d
                if wrong is not None and not is_same_output(wrong, right):
                    del left[d.name]
    assert not left


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_unique_and_rows_known(kind: str) -> None:
    found = deviations(small("diff_v2"), kind)
    names = [name for d in found for name in (d.name, *d.aliases)]
    assert len(set(names)) == len(names) > 30
    assert len({d.name for d in EVERY}) == len(EVERY)
    for d in (*EVERY, *RARE_DEVIATIONS):
        assert d.row in ("", *LINKS)
        assert d.what.endswith("."), d


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("no_norm_weight", HF),  # it has none
        ("window_one_too_short", HF),
        ("interleaved_pairs", small("gda")),  # refused by Spec
        ("sequences_not_separated", HF),  # there is one
        ("extra_norm", HF),
        ("query_positions_one_low", small("timm")),  # no RoPE
    ],
)
def test_deviations_that_a_spec_does_not_have(name: str, spec: Spec) -> None:
    (deviation,) = (d for d in EVERY if d.name == name)
    assert deviated(spec, draw(spec), [deviation]) is None


@pytest.mark.parametrize(
    ("structure", "positions"),
    [
        (Structure(queries=3, keys=5), [[2, 3, 4]]),
        (Structure(packed=((2, 4), (3, 3))), [[2, 3, 0, 1, 2]]),
        (Structure(pages=((2, 7), (2, 9))), [[5, 6], [7, 8]]),
        (Structure(pages=((2, 7), (3, 9))), [[5, 6, 6, 7, 8]]),
        (Structure(queries=3, keys=5, hidden=11), [[2, 3, 4]]),
    ],
    ids=["dense", "packed", "paged", "packed and paged", "layer"],
)
def test_queries_one_position_off(structure: Structure, positions: list[list[int]]) -> None:
    inputs = draw_values(HF, structure, "discriminating", 3)
    (low,) = (d for d in EVERY if d.name == "query_positions_one_low")
    problem = deviated(HF, inputs, [low])
    assert problem is not None
    found = problem.inputs["q_positions"]
    assert np.array_equal(found, np.broadcast_to(positions, found.shape) - 1)


def test_where_nothing_is_given_to_be_ignored_the_output_is_right() -> None:
    x = draw(HF)
    right = output(Kernel(HF, x))
    ignoring: list[Mistake] = [d for d in (*EVERY, *RARE_DEVIATIONS) if d.name.endswith("_ignored")]
    assert len(ignoring) >= 4
    for d in ignoring:
        assert is_same_output(output(deviated(HF, x, [d])), right), d


@pytest.mark.parametrize("structure", [Structure(0, 3, 5), Structure(packed=((0, 1), (0, 4)))])
def test_no_deviation_fails_on_inputs_without_queries(structure: Structure) -> None:
    spec = small_spec("gda")
    x = draw_values(spec, structure, "natural", 1)
    for d in (*deviations(spec, kind_of(x)), *RARE_DEVIATIONS):
        out = output(deviated(spec, x, [d]))
        assert out is None or out.size == 0


# What an input cannot show, with and without rounding


def hidden(spec: Spec, structure: Structure, values: str = "natural", recipe: str | None = None) -> set[str]:
    return {d.name for d in blind_spots(spec, draw_values(spec, structure, values, 0), recipe)}


def test_one_token_hides_much() -> None:
    found = hidden(small("hf_diffllama"), Structure(1, 1, 1))
    assert len(found) >= 22
    assert "no_norm_after_attention" not in found


def test_rounding_hides_epsilon_and_small_values_show_it() -> None:
    spec = small_spec("hf_diffllama")
    assert "epsilon_1e-6" not in hidden(spec, Structure(2, 7, 9))
    assert "epsilon_1e-6" in hidden(spec, Structure(2, 7, 9), "natural", "bfloat16")
    assert "epsilon_1e-6" not in hidden(spec, Structure(2, 7, 9), "tiny_values", "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name", ["hf_diffllama", "ms_v1", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("gda", "diff_v2"))]
)
def test_everything_is_seen_by_some_case(name: str, dtype: str) -> None:
    """In one case at least of the lists of its dtype."""
    spec = small_spec(name)
    some = [cases(profile, spec=spec, dtype=dtype)[n]
            for profile, numbers in (("discriminating", (0, 1, 2)), ("tiny_values", (0,)), ("layout", (3,)))
            for n in numbers]  # fmt: skip
    hidden = ({d.name for d in blind_spots(spec, case.inputs, dtype)} for case in some)
    assert not set.intersection(*hidden)


# The catalogue as a whole: its names, axes and sources, and that each mistake in a derivative changes gradients


def test_names_and_rows() -> None:
    names = [m.name for m in CATALOGUE]
    assert len(set(names)) == len(names) >= 40
    for m in CATALOGUE:
        assert m.what.endswith("."), m
        assert m.row or not m.link, f"{m}: a link, but to no row"
        assert m.layer in (*layers.__all__, *EXTRA_OPS)


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
