"""What no kernel can compute is refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.validation import CHOICES

DIMS = {"query_heads": 12, "key_heads": 4, "head_dim": 6}


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 'no', but must be one of {CHOICES[name][0]!r}"):
        Spec(**{**DIMS, name: "no"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query_heads": 0}, "query_heads is 0, but must be a whole number of 1 or more"),
        ({"head_dim": 2.0}, "head_dim is 2.0"),
        ({"layer": -1}, "layer is -1, but layers count from 0"),
        ({"scale": 0.0}, "scale is 0.0, but must be above 0, or None"),
        ({"softcap": -3.0}, "softcap is -3.0"),
        ({"window": -1}, "window is -1"),
        ({"norm_eps": -1e-9}, "norm_eps is -1e-09"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"query_heads": True}, "query_heads is True, but must be a whole number of 1 or more"),
        ({"layer": "3"}, "layer is '3', but must be a whole number, counted from 0; leave the quotes out"),
        ({"layer": None}, "layer is None, but must be a whole number"),
        ({"window": 2.5}, "window is 2.5, but must be a whole number of keys, 0 or more, or None"),
        ({"rope_theta": "10000.0"}, "rope_theta is '10000.0', but must be a number above 0; leave the quotes out"),
        ({"rope_theta": None}, "rope_theta is None, but must be a number above 0"),
        ({"norm_eps": [1e-5]}, "norm_eps is .1e-05., but must be a number of 0 or more"),
        ({"scale": True}, "scale is True, but must be a number above 0, or None"),
        ({"norm_weight": "yes"}, "norm_weight is 'yes', but must be True or False"),
        ({"norm_weight": 1}, "norm_weight is 1, but must be True or False"),
        ({"pairing": ["halves"]}, "pairing is .'halves'., but must be one of"),
        ({"lambda_base": "constant", "lambda_init": float("nan")}, "lambda_init is nan, but must be finite"),
        ({"lambda_base": "constant", "lambda_init": float("-inf")}, "lambda_init is -inf, but must be finite"),
        ({"lambda_init": 0.5}, "lambda_base is 'depth' and lambda_init 0.5"),
        ({"lambda_base": "constant"}, "lambda_base is 'constant' and lambda_init None"),
        ({"query_heads": 5, "ratio": 1}, "query_heads is 5, but 1 signal heads and a noise head are 2"),
        ({"key_heads": 3}, "key_heads is 3, .*must be even .with keys='shared'"),
        (
            {"key_heads": 8},
            "12 query heads are 6 pairs, which 4 pairs of keys cannot share evenly: pairs would straddle groups",
        ),
        ({"ratio": 2, "key_heads": 6}, "12 query heads are 4 groups, which 3 pairs of keys"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5, but must be a number above 0, at most 1"),
        ({"partial_rotary_factor": 0.3}, "partial_rotary_factor is 0.3, of which no pair of the 6 dimensions"),
        ({"rope_parameters": 3}, "rope_parameters is 3, but must be a mapping, such as"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic', whose frequencies depend on the length"),
        ({"rope_parameters": {"rope_theta": 3.0}}, "rope_parameters has rope_theta, which is a field of the spec"),
        ({"rope_parameters": {"frequencies": [1.0]}}, "rope_parameters has 1 frequencies, but must have 3, one for"),
        ({"rope_parameters": {"frequencies": [1.0, 2.0, 3.0], "factor": 2}}, "and beside them factor, but must have 3"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' needs the parameter"),
        ({"head_dim": 5}, "head_dim is 5, but RoPE turns dimensions in pairs"),
        ({"norm": "none", "norm_weight": True}, "norm_weight is True, but there is no norm"),
        ({"norm": "none", "norm_bias": True}, "norm_bias is True, but there is no norm"),
        ({"qk_norm_weight": True}, "qk_norm_weight is True, but there is no norm of q and k"),
        ({"qk_norm_eps": 0.0}, "qk_norm_eps is 0.0, but must be above 0"),
        ({"lambda_per_head": 1}, "lambda_per_head is 1, but must be True or False"),
        ({"values": "single", "head_dim": 3, "rope": "none", "norm_over": "half_head"}, "a head is 3 wide"),
        (
            {"keys": "shared", "key_heads": 3, "pairing": "interleaved"},
            "values are 'halves', but shared keys have one value head",
        ),
        (
            {"keys": "shared", "key_heads": 3, "values": "single"},
            "keys are shared, and pairing is 'halves'.*diff-attn-v2",
        ),
        ({"ratio": 2, "gqa": "repeat_then_pair"}, "ratio is 2: gqa must be 'pair_then_group'"),
        ({"gqa": "repeat_then_pair", "group_order": "tiled"}, "gqa is 'repeat_then_pair': keys must be 'own'"),
    ],
)
def test_impossible(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec(**{**DIMS, **fields})


def test_limits_are_possible() -> None:
    assert Spec(**DIMS, window=0, norm_eps=0.0, lambda_base="constant", lambda_init=0.0, softcap=1e-3).window == 0
    assert Spec(query_heads=2, key_heads=2, head_dim=1, rope="none").heads == 1
