"""The names of the dictionary, for a core, pages and a layer."""

from __future__ import annotations

import re

import pytest

from refdiff.oracle import inputs as page
from refdiff.oracle.inputs import is_layer, options, shapes
from refdiff.oracle.spec.presets import PRESETS
from tests.oracle.example_inputs import small


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
