"""The equations: pure functions on arrays of any array-API namespace.

Axis letters, here and everywhere: B batch, T queries, S keys, H query heads, K key/value heads, d head size, D model
size, F inner size, V vocabulary.

    symbol in Ye et al. 2024 (arXiv 2410.05258)        function
    ------------------------------------------------   ------------------------------------
    DiffAttn(X), eq. 1                                 diff_attention, attention_weights
    λ, eq. 2                                           diff_lambda
    λ_init, section 2.1                                lambda_init
    MultiHead(X), eq. 3                                diff_heads_hf (value_pairs_hf)
    LN(·)                                              rms_norm
    SwiGLU(X), section 2.2                             swiglu, activation, linear
    (RoPE; Su et al. 2021)                             rope, rope_cos_sin, rope_frequencies
    (input, mask, loss)                                embedding, causal_mask, padding_mask,
                                                       packed_mask, softmax, cross_entropy
"""

from refdiff.layers.activation import activation, activation_vjp
from refdiff.layers.cross_entropy import cross_entropy, cross_entropy_vjp
from refdiff.layers.diff_attention import attention_weights, diff_attention, diff_attention_vjp
from refdiff.layers.diff_heads_hf import diff_heads_hf, diff_heads_hf_vjp, value_pairs_hf, value_pairs_hf_vjp
from refdiff.layers.diff_heads_paper import diff_heads_paper
from refdiff.layers.diff_heads_v2 import diff_heads_v2
from refdiff.layers.diff_lambda import diff_lambda, diff_lambda_v2, diff_lambda_vjp, lambda_init
from refdiff.layers.embedding import embedding, embedding_vjp
from refdiff.layers.linear import linear, linear_vjp
from refdiff.layers.mask import causal_mask, packed_mask, padding_mask
from refdiff.layers.plain_heads import plain_heads
from refdiff.layers.rms_norm import rms_norm, rms_norm_vjp
from refdiff.layers.rope import rope, rope_cos_sin, rope_vjp
from refdiff.layers.rope_frequencies import rope_frequencies
from refdiff.layers.softmax import softmax, softmax_vjp
from refdiff.layers.swiglu import swiglu, swiglu_vjp

__all__ = [
    "activation",
    "activation_vjp",
    "attention_weights",
    "causal_mask",
    "cross_entropy",
    "cross_entropy_vjp",
    "diff_attention",
    "diff_attention_vjp",
    "diff_heads_hf",
    "diff_heads_hf_vjp",
    "diff_heads_paper",
    "diff_heads_v2",
    "diff_lambda",
    "diff_lambda_v2",
    "diff_lambda_vjp",
    "embedding",
    "embedding_vjp",
    "lambda_init",
    "linear",
    "linear_vjp",
    "packed_mask",
    "padding_mask",
    "plain_heads",
    "rms_norm",
    "rms_norm_vjp",
    "rope",
    "rope_cos_sin",
    "rope_frequencies",
    "rope_vjp",
    "softmax",
    "softmax_vjp",
    "swiglu",
    "swiglu_vjp",
    "value_pairs_hf",
    "value_pairs_hf_vjp",
]
