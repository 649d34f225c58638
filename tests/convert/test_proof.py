"""The proof finds what is wrong, and nothing else."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

import refdiff
from refdiff.convert import _positions as positions
from refdiff.convert import convert, prove
from refdiff.layers.diff_heads_paper import SUBLN_EPS
from refdiff.model import weights
from refdiff.model.weights.precision import round_to
from tests.model.models import small_model


def test_the_proof_finds_a_single_wrong_row() -> None:
    model = small_model(variant="paper")
    config, params = convert(model.config, model.params, "hf")
    before = (model.config, model.params)
    assert prove(before, (config, params)).worst < 1e-13
    assert str(prove(before, (config, params))).startswith("3 attention layers compared in float64 on random")
    wrong = copy.deepcopy(params)
    rows = wrong["model"]["layers"][1]["self_attn"]["k_proj"]["weight"]
    rows[[0, 1]] = rows[[1, 0]]
    proof = prove(before, (config, wrong))
    assert proof.worst > 1e-3
    assert "(layer 1)" in str(proof)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_proof_is_not_blind_to_what_is_not_finite(layer: int) -> None:
    model = small_model(variant="hf")
    config, params = convert(model.config, model.params, "paper")
    before = (model.config, model.params)
    for value in (math.nan, math.inf):
        wrong = copy.deepcopy(params)
        wrong["model"]["layers"][layer]["self_attn"]["v_proj"]["weight"][2, 3] = value
        for proof in (prove(before, (config, wrong)), prove((config, wrong), before), prove(*2 * [(config, wrong)])):
            assert (proof.worst, proof.layer) == (math.inf, layer)
            assert sum(difference < 1e-13 for difference in proof.differences) == 2


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_proof_of_a_layer_that_gives_zeros(layer: int) -> None:
    model = small_model(variant="hf")
    before = (model.config, model.params)
    wrong = copy.deepcopy(convert(*before, "paper"))
    model.params["model"]["layers"][layer]["self_attn"]["o_proj"]["weight"][...] = 0
    right = prove(before, convert(*before, "paper"))
    assert right.differences[layer] == 0
    assert right.worst < 1e-13
    assert prove(before, wrong).differences[layer] == math.inf
    assert prove(wrong, before).differences[layer] == math.inf


def test_the_proof_looks_at_the_other_weights_too() -> None:
    model = small_model(refdiff.DiffLlamaForCausalLM, variant="hf")
    config, params = convert(model.config, model.params, "paper")
    before = (model.config, model.params)
    assert prove(before, (config, params)).changed == ()
    wrong = copy.deepcopy(params)
    wrong["model"]["embed_tokens"]["weight"][3] *= 2
    del wrong["model"]["layers"][1]["mlp"]["up_proj"]
    proof = prove(before, (config, wrong))
    assert proof.worst < 1e-13
    assert set(proof.changed) == {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"}
    assert "other weights: model.embed_tokens.weight, model.layers.1.mlp.up_proj.weight changed" in str(proof)


def test_the_proof_finds_another_epsilon() -> None:
    model = small_model(variant="hf", rms_norm_eps=1e-6)
    config, params = convert(model.config, model.params, "paper")
    before = (model.config, model.params)
    assert prove(before, (config, params)).worst < 1e-13
    same = small_model(variant="hf", rms_norm_eps=SUBLN_EPS)  # the same weights, which need no other size of values
    _, wrong = convert(same.config, same.params, "paper")
    assert prove(before, (config, wrong)).worst > 1e-3


@pytest.mark.parametrize("limit", [1, 8, 9, 10, 64, 131072, 2**53])
def test_the_proof_sees_near_and_far_positions(limit: int) -> None:
    seen = positions(limit, 9)
    assert len(seen) == 9
    assert (seen[0], seen[-1]) == (0, max(limit, 9) - 1)
    assert (np.diff(seen) > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("variant", ["hf", "paper"])
def test_rounding_explains_what_it_does_and_no_more(variant: str, dtype: str) -> None:
    model = small_model(refdiff.DiffLlamaForCausalLM, variant=variant, rms_norm_eps=1e-6)
    before = (model.config, model.params)
    config, params = convert(*before, "paper" if variant == "hf" else "hf")
    flat = weights.flatten(params)
    rounded = weights.nest({name: round_to(a, dtype) for name, a in flat.items()})
    assert prove(before, (config, params)).unexplained is None
    assert prove(before, (config, rounded)).unexplained == 0
    proof = prove(before, (config, rounded), dtype=dtype)
    assert proof.changed == ()
    assert proof.unexplained is None
    assert len(proof.rounded) == 3
    name = "model.layers.1.self_attn.k_proj.weight"
    wrong = weights.flatten(rounded)
    wrong[name] = wrong[name][[1, 0, *range(2, len(wrong[name]))]]
    wrong["model.norm.weight"] = wrong["model.norm.weight"] * (1 + 2.0**-6)
    proof = prove(before, (config, weights.nest(wrong)), dtype=dtype)
    assert proof.unexplained == 1
    assert proof.changed == ("model.norm.weight",)
