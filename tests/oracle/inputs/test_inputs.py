"""The names of the dictionary, for a core, pages and a layer; packed and paged inputs taken apart."""

from __future__ import annotations

import re

import numpy as np
import pytest

from refdiff.oracle import inputs as page
from refdiff.oracle.inputs import is_layer, options, shapes
from refdiff.oracle.inputs.sequences import sequences
from refdiff.oracle.spec.presets import PRESETS
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_stands_on_the_page(name: str) -> None:
    kinds = [{}, {"x": 0}, {"k_pages": 0}]
    for kind in kinds:
        for known in (*shapes(small(name), kind), *options(kind)):
            assert re.search(rf"(?<!\w){re.escape(known)}(?!\w)", page.__doc__ or "") or known.endswith(".bias"), known


def test_names_by_the_form_of_lambda() -> None:
    assert "lambda_q1" in shapes(small("ms_v1"), {})
    assert shapes(small("diff_v2"), {})["lambda_logits"] == "B T h"
    assert shapes(small("diff_v2"), {"x": 0})["lambda_proj.weight"] == "h D"
    assert "lambda_full" in shapes(small("ms_v1", lambda_form="given"), {})


def test_names_by_kind() -> None:
    assert is_layer({"x": 0})
    assert not is_layer({"q": 0})
    assert "norm_weight" not in shapes(small("hf_diffllama"), {})
    assert {"k_pages", "block_table"} <= set(shapes(small("ms_v1"), {"k_pages": 0}))
    assert "cu_seqlens_k" not in options({"k_pages": 0})
    assert "x_past" in options({"x": 0})


HF = small("hf_diffllama")


def test_packed() -> None:
    inputs = {**draw(HF, B=1, T=5, S=9), "cu_seqlens_q": np.array([0, 2, 2, 5]), "cu_seqlens_k": np.array([0, 3, 4, 9])}
    inputs["q_positions"] = np.arange(5)[None]
    inputs["key_mask"] = np.ones((1, 9), np.bool_)
    parts = list(sequences(inputs))
    assert [p.inputs["q"].shape[2] for p in parts] == [2, 0, 3]
    assert [p.inputs["k"].shape[2] for p in parts] == [3, 1, 5]
    assert np.array_equal(parts[2].inputs["v"], inputs["v"][:, :, 4:9])
    assert parts[2].inputs["q_positions"].tolist() == [[2, 3, 4]]
    assert parts[2].inputs["key_mask"].shape == (1, 5)
    assert (parts[2].queries, parts[2].keys) == (slice(2, 5), slice(4, 9))


def test_lambda_goes_with_its_tokens() -> None:
    v2 = small("diff_v2")
    inputs = {**draw(v2, B=1, T=5, S=5), "cu_seqlens_q": np.array([0, 2, 5])}
    assert [p.inputs["lambda_logits"].shape[1] for p in sequences(inputs)] == [2, 3]
    given = small("hf_diffllama", lambda_form="given")
    inputs = {**draw(given, B=1, T=5, S=5), "cu_seqlens_q": np.array([0, 2, 5]), "lambda_full": np.ones((1, 6, 5))}
    assert [p.inputs["lambda_full"].shape[2] for p in sequences(inputs)] == [2, 3]
