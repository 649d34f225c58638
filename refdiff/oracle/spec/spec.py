"""`Spec`: what a kernel is meant to compute, with a field for each choice on which published attentions differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from refdiff.oracle.spec.presets import merge_preset
from refdiff.oracle.spec.validation import check_field_names, check_spec, convert_field


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A differential attention without its numbers: its dimensions, and each choice on which published ones differ.

    query_heads, key_heads: H and K, the heads of q and of k; those of both maps are counted.
    head_dim: d, the width of a head of q and k.
    layer: the depth from 0, on which λ_init depends.
    pairing: the query heads of pair i are i and i + h ("halves"), or 2i and 2i + 1 ("interleaved"); key heads alike.
    keys: each map has key heads of its own ("own", v1), or both maps share them ("shared", v2).
    gqa: "pair_then_group" pairs the key heads, and each pair serves n pairs of query heads. "repeat_then_pair" repeats
        each key head n times first.
    group_order: output head i reads key pair i // n ("blocks"), or i mod (K/2) ("tiled").
    ratio: how many signal heads share one noise head. With pairing "halves" all signal heads come first; with
        "interleaved" each group has its signal heads, then its noise head.
    values: v has K/2 heads of width 2d ("wide"); one head of width d for each key pair or shared key ("single"); or K
        heads of width d, of which j and j + K/2 ("halves") or 2j and 2j + 1 ("interleaved") are concatenated.
    v_head_dim: the width of a head of v, where it is not the usual d or 2d.
    rope: which dimensions of q and k form a rotated pair; "none" if they come in rotated.
    rope_theta: the base of the frequencies.
    partial_rotary_factor, rotary_at: the share of a head that is rotated, and whether its "first" or "last" dimensions.
    rope_parameters: frequencies other than rope_theta^(−2i / r) for r rotated dimensions: `rope_type` and its
        parameters as in a `config.json`, such as yarn's. cos and sin are multiplied by `attention_factor`, by default
        that of the `rope_type`.
    qk_norm, qk_norm_weight, qk_norm_eps: the norm of each head of q and k, whether it has weights, and its ε.
    qk_norm_at: whether it comes before or after RoPE.
    lambda_form: λ is exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init ("exp"), σ(logits) of each token and head ("sigmoid"), or
        an input ("given"). "none" is plain attention: one map, no λ, and an output head for each query head.
    lambda_per_head: whether each output head has four λ vectors, and a λ, of its own.
    lambda_base: λ_init is 0.8 − 0.6 exp(−0.3 l) with l the layer ("depth") or one less ("depth - 1"), or the number
        `lambda_init` ("constant").
    norm, norm_over, norm_weight, norm_eps: the norm of the difference, what it spans, whether it has a weight, its ε.
    norm_bias, norm_per_head: whether it has a bias, and whether each head has a weight and bias of its own. PyTorch's
        GroupNorm of each token is a "layer" norm with both: over a "head" for h groups, over "all_heads" for one.
    out_scale: the factor after the norm.
    gate: the function of `gate_logits` that multiplies each number of the output.
    scale: the factor of Q Kᵀ; None is 1/√d.
    softcap: c in c tanh(z / c), applied to the scaled scores z; None is no cap.
    sinks: whether each query head has a learned score that belongs to no key: A = e^z / (e^sink + Σ e^z). The
        log-sum-exp includes it, and is the sink itself for a query that sees no key.
    causal: whether the causal mask is aligned with the last query and key, or with the first; or "none".
    window: how many keys a query sees, its own included; None is all. With causal "none" it sees as many to its right.
    masked_rows: what a row of a map is if its query sees no key. Without sinks its log-sum-exp is −∞ in any case.
    lse_base: the base of the logarithm in lse1 and lse2, or lse.
    padded_queries: the queries are the last T of the S keys, and `key_mask` says which are padding. "computed" judges
        them like all others. "any" does not judge them: kernels that unpad write zeros there, or nothing.

    Raises:
        ValueError: no kernel can compute this combination, for example because pairs of heads would straddle groups.
    """

    query_heads: int
    key_heads: int
    head_dim: int
    layer: int = 0
    pairing: str = "halves"
    keys: str = "own"
    gqa: str = "pair_then_group"
    group_order: str = "blocks"
    ratio: int = 1
    values: str = "halves"
    v_head_dim: int | None = None
    rope: str = "halves"
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 1.0
    rotary_at: str = "first"
    rope_parameters: Mapping[str, Any] | None = None
    qk_norm: str = "none"
    qk_norm_weight: bool = False
    qk_norm_eps: float = 1e-6
    qk_norm_at: str = "before_rope"
    lambda_form: str = "exp"
    lambda_per_head: bool = False
    lambda_base: str = "depth"
    lambda_init: float | None = None
    norm: str = "rms"
    norm_over: str = "head"
    norm_weight: bool = False
    norm_eps: float = 1e-5
    norm_bias: bool = False
    norm_per_head: bool = False
    out_scale: str = "1 - lambda_init"
    gate: str = "none"
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    causal: str = "bottom_right"
    window: int | None = None
    masked_rows: str = "zeros"
    lse_base: str = "e"
    padded_queries: str = "computed"

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, convert_field(field.name, getattr(self, field.name)))
        check_spec(self)

    @staticmethod
    def preset(name: str, **dims: Any) -> Spec:
        """Return the spec of a published source with your dimensions; other fields override the preset's.

        Raises:
            ValueError: no preset has that name, or as `of`.
        """
        return Spec.of({**dims, "preset": name})

    @staticmethod
    def of(what: Mapping[str, Any]) -> Spec:
        """Return the spec that a mapping describes, such as a JSON object: fields by name, with or without "preset".

        `Spec.of({"preset": "hf_diffllama", "query_heads": 8, "key_heads": 4, "head_dim": 64, "window": 128})`

        Raises:
            ValueError: an unknown field, a value that a field cannot have, or a missing dimension.
        """
        given = merge_preset(what)
        check_field_names(given, [field.name for field in fields(Spec)])
        return Spec(**given)

    def replace(self, **changes: Any) -> Spec:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return every field by name: `Spec(**spec.to_dict()) == spec`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_plain(self) -> bool:
        """Whether it is plain attention, with one map."""
        return self.lambda_form == "none"

    @property
    def lse_names(self) -> tuple[str, ...]:
        """The names of the log-sum-exps, one for each map."""
        return ("lse",) if self.is_plain else ("lse1", "lse2")

    @property
    def heads(self) -> int:
        """h, the number of output heads."""
        return self.query_heads if self.is_plain else self.query_heads * self.ratio // (self.ratio + 1)

    @property
    def rotary_dim(self) -> int:
        """r, the number of rotated dimensions of a head; even."""
        return 2 * int(self.head_dim * self.partial_rotary_factor / 2 + 1e-9)

    @property
    def key_groups(self) -> int:
        """The number of key pairs, or of shared keys."""
        return self.key_heads if self.keys == "shared" else self.key_heads // 2

    @property
    def value_heads(self) -> int:
        """V, the number of heads of v."""
        return self.key_groups if self.values in ("wide", "single") else self.key_heads

    @property
    def value_dim(self) -> int:
        """w, the width of a head of v before heads are concatenated."""
        usual = 2 * self.head_dim if self.values == "wide" else self.head_dim
        return usual if self.v_head_dim is None else self.v_head_dim

    @property
    def out_dim(self) -> int:
        """e, the width of an output head."""
        return self.value_dim if self.values in ("wide", "single") else 2 * self.value_dim
