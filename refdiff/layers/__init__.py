"""The equations: pure functions on arrays of any array-API namespace.

Axis letters, here and everywhere: B batch, T queries, S keys, H query heads, K key/value heads, d head size, D model
size, F inner size, V vocabulary.

Each function computes in the dtype of its arguments, sums included, unless its docstring has a heading "Precision".
Shapes that do not fit raise `ValueError`, in a derivative too. So does a gradient `g` whose shape is not that of the
result. Masks, biases, positions and integers have no gradient.

The map: each equation, the functions that compute it, and the tests that check it. A derivative `f_vjp` stands
under its f. A name with a dot is above the layers. A test is file::name, the file in tests/layers, or in tests where it
has a slash.

Ye et al. 2024, "Differential Transformer" (arXiv 2410.05258)

    eq. 1           DiffAttn(X) = (softmax(Q₁ K₁ᵀ / √d) − λ softmax(Q₂ K₂ᵀ / √d)) V
        by          diff_attention, attention_weights, softmax
        tested by   test_diff_attention::test_precision, test_softmax::test_precision,
                    test_diff_attention::test_rows_of_the_difference_sum_to_one_minus_lambda
    eq. 2           λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init
        by          diff_lambda
        tested by   test_diff_lambda::test_precision, test_diff_lambda::test_bounds,
                    model/variants/test_variants::test_lambda_of_every_layer_is_that_of_the_paper
    section 2.1     λ_init = 0.8 − 0.6 exp(−0.3 (l − 1)), layers counted from 1
        by          lambda_init
        tested by   test_diff_lambda::test_lambda_init_by_layer
    eq. 3           MultiHead(X) = Concat_i((1 − λ_init) LN(DiffAttn_i(X))) W^O
        by          diff_heads_paper, diff_heads_hf, value_pairs_hf, model.diffllama.attention
        tested by   test_heads::test_precision, test_heads::test_paper_equals_hf_after_a_permutation_of_heads,
                    test_heads::test_equals_the_files_of_unilm,
                    model/variants/test_variants::test_equals_the_files_of_unilm
    section 2.1     with h = d_model / 2d heads, parameters and multiplications of matrix products as in a Transformer
        by          model.weights.names.parameter_shapes, model.diffllama.attention
        tested by   model/variants/test_variants::test_parameters_are_those_of_a_llama_but_for_lambda,
                    model/variants/test_variants::test_multiplications_are_those_of_a_llama
    eq. 4           Y^l = MultiHead(LN(X^l)) + X^l
        by          model.diffllama.decoder_layer
        tested by   model/test_diffllama::test_each_half_of_a_layer_is_added_to_its_input
    eq. 5           X^{l+1} = SwiGLU(LN(Y^l)) + Y^l
        by          model.diffllama.decoder_layer
        tested by   model/test_diffllama::test_each_half_of_a_layer_is_added_to_its_input
    section 2.2     LN(·) is RMSNorm
        by          rms_norm
        tested by   test_rms_norm::test_precision
    section 2.2     SwiGLU(X) = (swish(X W^G) ⊙ X W_1) W_2
        by          swiglu, activation, linear
        tested by   test_swiglu::test_precision, test_activation::test_precision, test_linear::test_precision
    eq. 6           O = GroupNorm((A₁ − λ A₂) V) W^O, GroupNorm with the scale 1 − λ_init
        by          diff_heads_paper
        tested by   test_heads::test_heads_are_differential_attention_of_their_branches
    eq. 7           ∂L/∂W^O, ∂L/∂W^V, ∂L/∂W^Q_i, ∂L/∂W^K_i of eq. 6, as the paper prints them: without GroupNorm's own
        by          diff_attention
        tested by   test_gradient_flow::test_eq_7_is_the_derivative_of_the_layer
    eq. 8           A = softmax((Q₁ K₁ᵀ + Q₂ K₂ᵀ) / √2d), O = (A V) W^O: a plain head of size 2d
        by          plain_heads
        tested by   test_heads::test_two_concatenated_branches_are_one_map_of_summed_scores,
                    test_heads::test_precision
    eq. 9           ∂L/∂W^O, ∂L/∂W^V, ∂L/∂W^Q_i, ∂L/∂W^K_i of eq. 8
        by          plain_heads
        tested by   test_gradient_flow::test_eq_9_is_the_derivative_of_the_layer
    appendix G      the gradients of eq. 7 and 9 differ by constant factors
        by          diff_heads_paper, plain_heads
        tested by   test_gradient_flow::test_scale_of_gradients_at_initialization

Ye et al. 2026, "Differential Transformer V2" (huggingface.co/blog/microsoft/diff-attn-v2), which numbers none

    DiffAttnV2      c_i = Σ_j (softmax(z¹)_ij − σ(λ_i) softmax(z²)_ij) v_j, both queries on one key and value head
        by          diff_heads_v2
        tested by   test_heads::test_precision, test_heads::test_equals_the_files_of_unilm
    λ               σ(X W_λ), for each token and head
        by          diff_lambda_v2
        tested by   test_diff_lambda::test_v2_precision
    Context         C = softmax(Q Kᵀ / √d) V has RMS(c_i) in [1/√n, 1], DiffAttnV2 in (0, √2)
        by          plain_heads, diff_heads_v2
        tested by   test_heads::test_the_size_of_the_context_is_between_0_and_the_root_of_2,
                    test_heads::test_the_size_of_the_context_reaches_its_bounds
    Construction    a Transformer of 2h heads computes it where W_O of head 2i + 1 is −λ times that of head 2i
        by          convert.convert
        tested by   test_heads::test_v2_is_plain_attention_with_twice_the_heads_subtracted_in_pairs,
                    convert/test_rewire::test_it_computes_the_same

What they build on

    RoPE            angles p θ_i, and the rotation of each pair (Su et al. 2021, eq. 34); θ_i by rope_type
        by          rope, rope_cos_sin, rope_frequencies
        tested by   test_rope::test_precision, test_rope::test_scores_depend_on_differences_of_positions_only,
                    test_rope_frequencies::test_precision
    embedding       e_t = E[id_t]
        by          embedding
        tested by   test_embedding::test_is_the_product_with_one_hot_rows
    masks           causal, padding, and sequences packed in one batch item
        by          causal_mask, padding_mask, packed_mask
        tested by   test_mask::test_queries_are_the_last_of_the_keys, test_mask::test_padding_is_anything_but_zero,
                    test_mask::test_packed_sequences_see_only_themselves
    loss            −log softmax(z)[target]
        by          cross_entropy
        tested by   test_cross_entropy::test_precision

Attention variants; n is the number of queries per key, H/K (in v2 h/K).

                      pair i       its keys                values             λ             after it         RoPE
    diff_heads_paper  2i, 2i+1     2j, 2j+1, j = i // n    K/2 of 2d          one a layer   RMS, weight,     interleaved
                                                                                            × (1 − λ_init)
    diff_heads_hf     i, i+H/2     j, j+K/2, j = i // n    K/2 of 2d,         one a layer   RMS,             halves
                                                           [v_j, v_{j+K/2}]                 × (1 − λ_init)
    diff_heads_v2     2i, 2i+1     j twice, j = i // n     K of d             token, head   nothing          interleaved
    plain_heads       i alone      j = i // n              K of d             none          nothing          halves
"""

from refdiff.layers.activation import activation, activation_vjp
from refdiff.layers.cross_entropy import cross_entropy, cross_entropy_vjp
from refdiff.layers.diff_attention import attention_weights, attention_weights_vjp, diff_attention, diff_attention_vjp
from refdiff.layers.diff_heads_hf import diff_heads_hf, diff_heads_hf_vjp, value_pairs_hf, value_pairs_hf_vjp
from refdiff.layers.diff_heads_paper import diff_heads_paper, diff_heads_paper_vjp
from refdiff.layers.diff_heads_v2 import diff_heads_v2, diff_heads_v2_vjp
from refdiff.layers.diff_lambda import diff_lambda, diff_lambda_v2, diff_lambda_v2_vjp, diff_lambda_vjp, lambda_init
from refdiff.layers.embedding import embedding, embedding_vjp
from refdiff.layers.linear import linear, linear_vjp
from refdiff.layers.mask import causal_mask, packed_mask, padding_mask
from refdiff.layers.plain_heads import plain_heads, plain_heads_vjp
from refdiff.layers.rms_norm import rms_norm, rms_norm_vjp
from refdiff.layers.rope import rope, rope_cos_sin, rope_vjp
from refdiff.layers.rope_frequencies import rope_frequencies
from refdiff.layers.softmax import softmax, softmax_vjp
from refdiff.layers.swiglu import swiglu, swiglu_vjp

__all__ = [
    "activation",
    "activation_vjp",
    "attention_weights",
    "attention_weights_vjp",
    "causal_mask",
    "cross_entropy",
    "cross_entropy_vjp",
    "diff_attention",
    "diff_attention_vjp",
    "diff_heads_hf",
    "diff_heads_hf_vjp",
    "diff_heads_paper",
    "diff_heads_paper_vjp",
    "diff_heads_v2",
    "diff_heads_v2_vjp",
    "diff_lambda",
    "diff_lambda_v2",
    "diff_lambda_v2_vjp",
    "diff_lambda_vjp",
    "embedding",
    "embedding_vjp",
    "lambda_init",
    "linear",
    "linear_vjp",
    "packed_mask",
    "padding_mask",
    "plain_heads",
    "plain_heads_vjp",
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

COMPOSED = {
    "attention_weights": ("causal_mask", "softmax"),
    "attention_weights_vjp": ("attention_weights", "softmax_vjp"),
    "diff_attention": ("attention_weights",),
    "diff_attention_vjp": ("attention_weights", "attention_weights_vjp"),
    "diff_heads_hf": ("diff_attention", "rms_norm"),
    "diff_heads_hf_vjp": ("diff_attention", "diff_attention_vjp", "rms_norm_vjp"),
    "diff_heads_paper": ("diff_attention", "rms_norm"),
    "diff_heads_paper_vjp": ("diff_attention", "diff_attention_vjp", "rms_norm_vjp"),
    "diff_heads_v2": ("diff_attention",),
    "diff_heads_v2_vjp": ("diff_attention_vjp",),
    "diff_lambda_v2": ("activation", "linear"),
    "diff_lambda_v2_vjp": ("activation_vjp", "linear", "linear_vjp"),
    "plain_heads": ("attention_weights",),
    "plain_heads_vjp": ("attention_weights", "attention_weights_vjp"),
    "swiglu": ("activation", "linear"),
    "swiglu_vjp": ("activation", "activation_vjp", "linear", "linear_vjp"),
}
"""The layers that are composed of others, and those that each calls. They take the functions to call as `ops`, a
namespace with these names; without it they call the layers of this module. A derivative that calls `diff_attention`
takes its result as `saved`, where the forward pass kept it."""
