"""Plain attention and the published differential attentions, each as the fields of a `Spec`.

attention     softmax(Q Kᵀ / √d) V (Vaswani et al. 2017, eq. 1): MHA, GQA or MQA by `key_heads`. `v_head_dim` is for v
              of another width than q and k (MLA). It takes `window` and `softcap`. A kernel that rotates q and k itself
              needs `rope="halves"`. The causal mask is aligned with the last key, as in FlashAttention; torch's
              `is_causal` is `causal="top_left"`.
hf_diffllama  transformers, `models/diffllama/modeling_diffllama.py` (5.24). ε is the model's `rms_norm_eps`.
ms_v1         microsoft/unilm, `Diff-Transformer/multihead_flashdiff_1.py` and `_2.py`. ε of the norm is 1e-5.
ms_v1_naive   the same folder's `multihead_diffattn.py`, which repeats the key heads before it pairs them. With MHA it
              equals `ms_v1`; with GQA it is another function.
timm          huggingface/pytorch-image-models, `timm/layers/diff_attention.py` (1.0): for images, so without RoPE and
              causal mask. It has no GQA: query_heads and key_heads are both twice its `num_heads`. head_dim is its
              `head_dim`, dim / num_heads / 2. The thirds of `qkv` are q_proj, k_proj and v_proj; `proj` is o_proj and
              `sub_norm.weight` norm_weight. Its optional `qk_norm` is `qk_norm="rms",
              qk_norm_weight=True`; `scale_norm` and `dual_lambda` are not covered.
phi4flash     vLLM, `models/phi4flash.py` with `differential_flash_attn.py`: no RoPE. The model sets `window` in some
              layers. vLLM counts `sliding_window - 1` keys to the left of the query; `window` includes its own key.
motif         Motif-2.6B in vLLM, `models/motif.py`: layer l has the λ_init of layer l − 1. ε is `attn_rms_norm_eps`,
              whose default was read from a port to MLX.
diff_v2       microsoft/unilm, `Diff-Transformer/Diff-Transformer-V2/multihead_flashdiffv2.py`.
gda           Motif-2-12.7B: grouped differential attention (Lim et al. 2025, arXiv 2510.06949) as in vLLM's pull
              request 27396. The heads of a group follow each other: `ratio` signal heads, then their noise head.
              Uncertain: λ_init of layer l − 1 comes from the ports to MLX and Swift; the model's own file was not read.
motif3        Motif-3: grouped differential latent attention (Lim et al. 2026, arXiv 2608.09119), in a layer with a
              window, as 39 of its 53 are. Each group of `ratio` signal heads and their noise head shares a key and a
              value, both projected from the token's latent. As in DeepSeek's MLA, a key is a part of its own and a
              rotated part that all groups share. q, k and v are the projected ones: heads of 192, of which RoPE rotates
              the last 64, and `v_head_dim` 128. Every fourth layer from 0 has no window: window=None, the frequencies
              of `YARN` and scale=(0.1 log 64 + 1)²/√192. The latent's norms and projections are not covered.
              Two ports that say they were checked against the model's `modeling_motif.py` confirm this, one bit for bit
              (rlx-motif, Tenstorrent's motif3 reference), and so does llama.cpp's pull request 26298. That file and the
              text of the paper were not read. The ports differ in three points: 128 or 129 keys, plain or yarn
              frequencies in layers without a window, and the place of the rotated part in a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refdiff.messages import did_you_mean
from refdiff.model.variants import VARIANTS
from refdiff.oracle.spec.validation import PLAIN_FIELDS

_UNILM: dict[str, Any] = {
    "pairing": "interleaved",
    "values": "wide",
    "rope": "interleaved",
    "norm_weight": True,
}
_VLLM: dict[str, Any] = {"pairing": "interleaved", "values": "interleaved", "norm_weight": True}

YARN: dict[str, Any] = {
    "rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "attention_factor": 1.0,
}  # fmt: skip
"""RoPE parameters of Motif-3's layers without a window."""

PRESETS: dict[str, dict[str, Any]] = {
    "hf_diffllama": {},
    "ms_v1": _UNILM,
    "ms_v1_naive": {**_UNILM, "gqa": "repeat_then_pair"},
    "timm": {**_UNILM, "rope": "none", "causal": "none"},
    "phi4flash": {**_VLLM, "rope": "none"},
    "motif": {**_VLLM, "rope": "halves", "lambda_base": "depth - 1"},
    "diff_v2": {
        "pairing": "interleaved",
        "keys": "shared",
        "values": "single",
        "rope": "interleaved",
        "lambda_form": "sigmoid",
        "norm": "none",
        "out_scale": "none",
    },
    "gda": {**_VLLM, "rope": "halves", "lambda_base": "depth - 1", "ratio": 4},
    "motif3": {
        "pairing": "interleaved",
        "keys": "shared",
        "values": "single",
        "ratio": 4,
        "rope": "halves",
        "partial_rotary_factor": 1 / 3,
        "rotary_at": "last",
        "lambda_form": "sigmoid",
        "norm": "none",
        "out_scale": "none",
        "gate": "sigmoid",
        "window": 129,
    },
    "attention": {**PLAIN_FIELDS, "lambda_form": "none", "rope": "none", "norm": "none"},
}

VARIANT_PRESETS = {name: variant.preset for name, variant in VARIANTS.items() if variant.preset is not None}
"""The preset of each attention variant of the models here (`DiffLlamaConfig.variant`)."""


def merge_preset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the preset named by `fields["preset"]`, overridden by the other fields.

    Without "preset" the fields are returned as they are.

    Raises:
        ValueError: no preset has that name.
    """
    rest = {name: value for name, value in fields.items() if name != "preset"}
    if "preset" not in fields:
        return rest
    name = fields["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        hint = did_you_mean(name, PRESETS, ", ", ":")
        if str(name) in VARIANT_PRESETS:
            hint = f"; the preset of that variant is {VARIANT_PRESETS[name]!r};"
        raise ValueError(f"no preset is called {name!r}{hint} there are {', '.join(PRESETS)}")
    return {**PRESETS[name], **rest}
