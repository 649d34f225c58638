"""Plain attention and the published differential attentions, each as the fields of a `Spec`.

attention     softmax(Q Kᵀ / √d) V (Vaswani et al. 2017, eq. 1), with as many key heads as query heads, fewer, or one
              (MHA, GQA, MQA); `v_head_dim` where v is not as wide as q and k (MLA); `window` and `softcap`. RoPE is
              left to the caller: `rope="halves"` where the kernel has it. The last query sees the last key, as in
              FlashAttention; torch's `is_causal` is `causal="top_left"`.
hf_diffllama  transformers, `models/diffllama/modeling_diffllama.py` (5.24). ε is the model's `rms_norm_eps`.
ms_v1         microsoft/unilm, `Diff-Transformer/multihead_flashdiff_1.py` and `_2.py`. ε of the norm is 1e-5.
ms_v1_naive   the same folder's `multihead_diffattn.py`, which repeats keys before it pairs them: as `ms_v1` where there
              are as many keys as queries, another function where there are fewer.
timm          huggingface/pytorch-image-models, `timm/layers/diff_attention.py` (1.0): images, so no RoPE and no causal
              mask. It has no grouped queries: query_heads and key_heads are both twice its `num_heads`, and head_dim is
              its `head_dim`, dim / num_heads / 2. Thirds of `qkv` are q_proj, k_proj and v_proj, `proj` is o_proj,
              `sub_norm.weight` norm_weight. Not here: its optional `qk_norm`, `scale_norm` and `dual_lambda`.
phi4flash     vLLM, `models/phi4flash.py` with `differential_flash_attn.py`: no RoPE; the model sets `window` in some
              layers (vLLM's `sliding_window - 1` keys to the left are `window` keys with the query's own).
motif         Motif-2.6B in vLLM, `models/motif.py`: λ_init of layer l is that of l − 1. ε is `attn_rms_norm_eps`, whose
              default was read from a port to MLX.
diff_v2       microsoft/unilm, `Diff-Transformer/Diff-Transformer-V2/multihead_flashdiffv2.py`.
gda           Motif-2-12.7B: grouped differential attention (Lim et al. 2025, arXiv 2510.06949) as in vLLM's pull
              request 27396. Heads stand group by group, each `ratio` signals, then their noise. Uncertain: λ_init of
              l − 1 is that of the ports to MLX and Swift; the model's own file was not read.
motif3        Motif-3: grouped differential latent attention (Lim et al. 2026, arXiv 2608.09119), in a layer with a
              window, as 39 of its 53 are. Each group of `ratio` signals and their noise shares a key and a value, which
              are made of one latent of the token; k is the part of each group beside what all share and RoPE turns, as
              in DeepSeek's MLA. q, k and v are given as after these projections: heads of 192, of which the last 64
              turn, and `v_head_dim` 128. A layer without a window, each fourth from 0, has window=None, the frequencies
              of `YARN` and scale=(0.1 log 64 + 1)²/√192. Not here: the latent's own norms and projections.
              Confirmed by two ports that say they were checked against the model's own file, `modeling_motif.py`, one
              of them to the bit (rlx-motif and Tenstorrent's motif3 reference), and by llama.cpp's pull request 26298.
              That file itself and the paper's text were not read. Ports differ: 128 or 129 keys, plain frequencies or
              yarn's in the layers without a window, and where in a head they store the part that turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refdiff.messages import did_you_mean
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
"""The frequencies of Motif-3's layers without a window."""

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

VARIANT_PRESETS = {"hf": "hf_diffllama", "paper": "ms_v1", "v2": "diff_v2", "none": "attention"}
"""The preset of each variant that is a whole model here (`DiffLlamaConfig.wiring`)."""

MHA_PRESETS = ("timm",)
"""Those that have as many key heads as query heads, always."""


def merge_preset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lay fields over those of the preset that is named beside them as "preset"; without one they are as they were.

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
