import numpy as np
from refdiff import layers

# %% softmax, softmax_vjp
z = np.array([1.0, 2.0, 3.0])
print(layers.softmax(z).round(3))
print(layers.softmax(z, mask=np.array([True, True, False])).round(3))
(dz, _) = layers.softmax_vjp(np.array([1.0, 0.0, 0.0]), z)
print(dz.round(3))

# %% causal_mask
print(layers.causal_mask(2, 4, xp=np))  # 2 queries at the end of 4 keys

# %% padding_mask
print(layers.padding_mask(np.array([[0, 1, 1]]))[0, 0])

# %% packed_mask
print(layers.packed_mask(np.array([[0, 1, 2, 0, 1]]))[0, 0].astype(int))  # two texts in one sequence

# %% attention_weights, attention_weights_vjp
q = np.eye(3)[None, None]  # (B, H, T, d)
weights = layers.attention_weights(q, 2 * q)
print(weights[0, 0].round(3))
dq, dk = layers.attention_weights_vjp(np.ones_like(weights), q, 2 * q)
print(abs(dq).max() < 1e-12)  # rows sum to 1 whatever q is

# %% diff_attention, diff_attention_vjp
rng = np.random.default_rng(0)
q1, k1, q2, k2, v = rng.standard_normal((5, 1, 1, 4, 2))
lambda_ = np.array(0.5)
out = layers.diff_attention(q1, k1, q2, k2, v, lambda_)
print(out[0, 0].round(3))
gradients = layers.diff_attention_vjp(np.ones_like(out), q1, k1, q2, k2, v, lambda_)
print("dL/dλ =", gradients[5].round(3))

# %% diff_lambda, diff_lambda_vjp
vectors = [np.array([0.1, 0.2]), np.array([1.0, 1.0]), np.array([0.0, 0.1]), np.array([1.0, 1.0])]
print(layers.diff_lambda(*vectors, 0.8).round(3))  # exp(0.3) - exp(0.1) + 0.8
print(layers.diff_lambda_vjp(np.array(1.0), *vectors, 0.8)[0].round(3))

# %% lambda_init
print([round(layers.lambda_init(layer), 3) for layer in range(6)])

# %% diff_lambda_v2, diff_lambda_v2_vjp
x, weight = np.array([[[1.0, -1.0]]]), np.array([[2.0, 0.0], [0.0, 2.0]])
lambda_ = layers.diff_lambda_v2(x, weight)
print(lambda_.shape, lambda_.ravel().round(3))  # one λ for each token and head
print(layers.diff_lambda_v2_vjp(np.ones_like(lambda_), x, weight)[0].round(3))

# %% value_pairs_hf, value_pairs_hf_vjp
v = np.arange(8.0).reshape(1, 4, 1, 2)  # 4 heads of size 2
print(layers.value_pairs_hf(v)[0, :, 0])  # heads i and i + 2 side by side
print(layers.value_pairs_hf_vjp(layers.value_pairs_hf(v), v)[0].ravel())

# %% diff_heads_hf, diff_heads_hf_vjp
rng = np.random.default_rng(0)
q, k = rng.standard_normal((2, 1, 4, 3, 2))  # 4 heads, 3 tokens, size 2
v = layers.value_pairs_hf(rng.standard_normal((1, 4, 3, 2)))
out = layers.diff_heads_hf(q, k, v, np.array(0.5), 0.2, 1e-5)
print(out.shape)
print(layers.diff_heads_hf_vjp(np.ones_like(out), q, k, v, np.array(0.5), 0.2, 1e-5)[0].shape)

# %% diff_heads_paper, diff_heads_paper_vjp
rng = np.random.default_rng(0)
q, k = rng.standard_normal((2, 1, 4, 3, 2))
v = rng.standard_normal((1, 2, 3, 4))  # one value of size 2d for heads 2i and 2i + 1
out = layers.diff_heads_paper(q, k, v, np.array(0.5), np.ones(4), 0.2)
print(out.shape)
print(layers.diff_heads_paper_vjp(np.ones_like(out), q, k, v, np.array(0.5), np.ones(4), 0.2)[0].shape)

# %% diff_heads_v2, diff_heads_v2_vjp
rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((1, 4, 3, 2)), *rng.standard_normal((2, 1, 2, 3, 2))  # two queries share a key
lambda_ = np.full((1, 2, 3, 1), 0.5)
out = layers.diff_heads_v2(q, k, v, lambda_)
print(out.shape)
print(layers.diff_heads_v2_vjp(np.ones_like(out), q, k, v, lambda_)[3].shape)

# %% plain_heads, plain_heads_vjp
rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 1, 2, 3, 4))
out = layers.plain_heads(q, k, v)
print(out.shape)
print(np.allclose(out[0, 0, :4], v[0, 0, 0]))  # the first token sees itself alone
print(layers.plain_heads_vjp(np.ones_like(out), q, k, v)[2].shape)

# %% rms_norm, rms_norm_vjp
x = np.array([3.0, 4.0])
print(layers.rms_norm(x, None, 0.0).round(3), layers.rms_norm(x, np.array([1.0, 10.0]), 0.0).round(3))
print(layers.rms_norm_vjp(np.array([1.0, 0.0]), x, None, 0.0)[0].round(3))

# %% rope, rope_vjp, rope_cos_sin, rope_frequencies
frequencies, scale = layers.rope_frequencies({"rope_type": "default", "rope_theta": 10000.0}, 4, 512)
print(frequencies)
cos, sin = layers.rope_cos_sin(np.arange(3)[None], frequencies, scale, np.float64)
x = np.ones((1, 1, 3, 4))
print(layers.rope(x, cos, sin)[0, 0].round(3))  # rotated by position · frequency
print(np.allclose(layers.rope_vjp(layers.rope(x, cos, sin), x, cos, sin)[0], x))  # rotated back

# %% linear, linear_vjp
x, weight = np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
print(layers.linear(x, weight))
dx, dw, _ = layers.linear_vjp(np.ones(3), x, weight)
print(dx, dw.tolist())

# %% embedding, embedding_vjp
table = np.array([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1]])
print(layers.embedding(np.array([2, 0, 2]), table))
print(layers.embedding_vjp(np.ones((3, 2)), np.array([2, 0, 2]), table)[1])

# %% activation, activation_vjp
from refdiff.layers.activation import ACTIVATIONS

print(*sorted(ACTIVATIONS))  # what hidden_act of a config may be
print(layers.activation(np.array([-1.0, 0.0, 1.0]), "silu").round(3))
print(layers.activation_vjp(np.ones(3), np.array([-1.0, 0.0, 1.0]), "silu")[0].round(3))

# %% swiglu, swiglu_vjp
gate, up, down = ({"weight": w} for w in (np.eye(2), 2 * np.eye(2), np.eye(2)))
x = np.array([1.0, -1.0])
print(layers.swiglu(x, gate, up, down).round(3))
print(layers.swiglu_vjp(np.ones(2), x, gate, up, down)[0].round(3))

# %% cross_entropy, cross_entropy_vjp
logits, targets = np.zeros((1, 2, 4)), np.array([[1, -100]])  # -100 is ignored
print(layers.cross_entropy(logits, targets).round(4), np.log(4).round(4))
print(layers.cross_entropy_vjp(np.array(1.0), logits, targets)[0][0])
