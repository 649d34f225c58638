"""What a kernel is meant to compute: every choice on which published differential attentions differ is a field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from refdiff.oracle.spec.presets import MHA_PRESETS, merge_preset
from refdiff.oracle.spec.validation import TYPED_FIELDS, check_field_names, check_spec, convert_field


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One differential attention, up to its numbers: dimensions, and each choice on which published ones differ.

    query_heads H, key_heads K: rows of q and k on the head axis, those of both maps counted. head_dim d: their width.
    layer: the depth, from 0; λ_init depends on it.
    pairing: the two maps of pair i are query heads i, i + h ("halves") or 2i, 2i + 1 ("interleaved"), and keys alike.
    keys: each map has its own key heads (v1), or the two share one (v2).
    gqa: the key heads are paired, then each pair serves n pairs of queries; or each is repeated, then they are paired.
    group_order: output head i reads key pair i // n ("blocks") or i mod (K/2) ("tiled").
    ratio: signal heads to one noise head. "halves" then has all signals first; "interleaved" has them group by group.
    values: v has K/2 heads of 2d ("wide"); K heads of d, of which j, j + K/2 ("halves") or 2j, 2j + 1 ("interleaved")
    are laid side by side; or a head of d for each key pair, or shared key ("single"). v_head_dim: the width of these
    heads of v where it is another.
    rope: which dimensions of q and k turn together, or "none" where they come in turned; rope_theta is the base.
    partial_rotary_factor, rotary_at: which share of a head turns, its first dimensions or its last.
    rope_parameters: how frequencies differ from rope_theta^(−2i / r), r being how many dimensions turn: `rope_type` and
    its parameters as a `config.json` has them, such as yarn's; or `frequencies`, r/2 numbers in radians per position.
    cos and sin are multiplied by `attention_factor`, or what its `rope_type` has for one.
    qk_norm, qk_norm_weight, qk_norm_eps, qk_norm_at: the norm of each head of q and k, with weights or without, its ε,
    before RoPE or after it.
    lambda_form: exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init ("exp"), σ(logits) by token and head ("sigmoid"), or "given";
    "none" is plain attention: one map, no λ, an output head for each query head.
    lambda_per_head: the four vectors are those of each output head, and so is λ.
    lambda_base: λ_init = 0.8 − 0.6 exp(−0.3 l), l being the layer or one less; or "constant": lambda_init, a number.
    norm, norm_over, norm_weight, norm_eps: the norm after the difference, over what, with a weight or without, its ε.
    norm_bias, norm_per_head: whether it adds a bias, and whether each head has a weight and bias of its own. PyTorch's
    GroupNorm of h groups, for each token, is a "layer" norm over a "head" with both; of one group, over "all_heads".
    out_scale: what is multiplied after the norm. gate: the function of `gate_logits` that then multiplies each number.
    scale: what Q Kᵀ is multiplied by; None is 1/√d. softcap: c in c tanh(z / c), or None. sinks: whether each query
    head has a learned score of no key, so that A = e^z / (e^sink + Σ e^z); it counts in the log-sum-exp too, which is
    the sink itself where a query sees no key.
    causal: whether the triangle is aligned with the last query and key, or with the first; window: how many keys a
    query sees, itself among them, or None for all.
    masked_rows: what a row of a map is that sees no key; without sinks its log-sum-exp is −∞, whatever this says.
    lse_base: of the logarithm in lse1 and lse2, or lse.
    padded_queries: whether queries that `key_mask` calls padding, as the last T of the S keys, are "computed" like all
    others, or may be "any"thing: kernels that unpad write zeros, or nothing. Their rows are then not judged.

    Raises:
        ValueError: a combination that no kernel can compute, such as pairs that would straddle groups.
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
        for name in TYPED_FIELDS:
            object.__setattr__(self, name, convert_field(name, getattr(self, name)))
        check_spec(self)

    @staticmethod
    def preset(name: str, **dims: Any) -> Spec:
        """Return the spec of a published source, with your dimensions; further fields override the preset's.

        Raises:
            ValueError: no preset has that name, or the source has no grouped queries; as `of`.
        """
        return Spec.of({**dims, "preset": name})

    @staticmethod
    def of(what: Mapping[str, Any]) -> Spec:
        """Return the spec that a mapping describes, such as an object of JSON: fields by name, or some over a preset's.

        `Spec.of({"preset": "hf_diffllama", "query_heads": 8, "key_heads": 4, "head_dim": 64, "window": 128})`

        Raises:
            ValueError: a name that is no field, a value that it cannot have, a dimension that is missing; a preset
                whose source has no grouped queries, with fewer key heads than query heads.
        """
        given = merge_preset(what)
        check_field_names(given, [field.name for field in fields(Spec)])
        spec, name = Spec(**given), what.get("preset")
        if name in MHA_PRESETS and spec.query_heads != spec.key_heads:
            raise ValueError(
                f"query_heads is {spec.query_heads} and key_heads {spec.key_heads}, but {name} has no grouped queries: "
                "both must be the same, twice its num_heads. With groups, Spec.preset('ms_v1', rope='none', "
                "causal='none', …) has the rest of it"
            )
        return spec

    def replace(self, **changes: Any) -> Spec:
        """The same with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, for a manifest: `Spec(**spec.to_dict()) == spec`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_plain(self) -> bool:
        """Whether it is plain attention, of one map."""
        return self.lambda_form == "none"

    @property
    def lse_names(self) -> tuple[str, ...]:
        """What the log-sum-exp of each map is called."""
        return ("lse",) if self.is_plain else ("lse1", "lse2")

    @property
    def heads(self) -> int:
        """h: how many output heads there are."""
        return self.query_heads if self.is_plain else self.query_heads * self.ratio // (self.ratio + 1)

    @property
    def rotary_dim(self) -> int:
        """r: how many dimensions of a head turn, in pairs."""
        return 2 * int(self.head_dim * self.partial_rotary_factor / 2 + 1e-9)

    @property
    def key_groups(self) -> int:
        """How many groups of queries read different keys: key pairs, or shared keys."""
        return self.key_heads if self.keys == "shared" else self.key_heads // 2

    @property
    def value_heads(self) -> int:
        """Rows of v on the head axis."""
        return self.key_groups if self.values in ("wide", "single") else self.key_heads

    @property
    def value_dim(self) -> int:
        """The width of v's heads as they come in."""
        usual = 2 * self.head_dim if self.values == "wide" else self.head_dim
        return usual if self.v_head_dim is None else self.v_head_dim

    @property
    def out_dim(self) -> int:
        """e: the width of an output head."""
        return self.value_dim if self.values in ("wide", "single") else 2 * self.value_dim
