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

from refdiff.layers.activation import activation
from refdiff.layers.cross_entropy import cross_entropy
from refdiff.layers.diff_attention import attention_weights, diff_attention
from refdiff.layers.diff_heads_hf import diff_heads_hf, value_pairs_hf
from refdiff.layers.diff_lambda import diff_lambda, lambda_init
from refdiff.layers.embedding import embedding
from refdiff.layers.linear import linear
from refdiff.layers.mask import causal_mask, packed_mask, padding_mask
from refdiff.layers.rms_norm import rms_norm
from refdiff.layers.rope import rope, rope_cos_sin
from refdiff.layers.rope_frequencies import rope_frequencies
from refdiff.layers.softmax import softmax
from refdiff.layers.swiglu import swiglu

__all__ = [
    "activation",
    "attention_weights",
    "causal_mask",
    "cross_entropy",
    "diff_attention",
    "diff_heads_hf",
    "diff_lambda",
    "embedding",
    "lambda_init",
    "linear",
    "packed_mask",
    "padding_mask",
    "rms_norm",
    "rope",
    "rope_cos_sin",
    "rope_frequencies",
    "softmax",
    "swiglu",
    "value_pairs_hf",
]
