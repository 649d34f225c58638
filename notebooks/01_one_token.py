# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · One token through the model
#
# **What you will see.** A text becomes numbers, the numbers go through the layers, and one new token comes out. We
# take each step by hand, print every shape, and check at the end that the model computes the same.
#
# Axis letters, here and in all of refdiff: B texts in a batch, T tokens that ask (queries), S tokens that are looked
# at (keys), H query heads, K key heads, d numbers in a head, D numbers in a token, F numbers inside the feed-forward
# network, V tokens in the vocabulary.

# %%
# %matplotlib inline
import inspect

import numpy as np

import refdiff
from refdiff import layers, viz
from refdiff.model import diffllama

model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
config, params = model.config, model.base_params

print(f"D = {config.hidden_size}, layers = {config.num_hidden_layers}, V = {config.vocab_size}")
print(f"H = {config.num_attention_heads}, K = {config.num_key_value_heads}, d = {config.head_dim}")
print(f"F = {config.intermediate_size}, parameters = {model.num_parameters():,}")

# %% [markdown]
# ## Text → ids → embeddings
#
# The tokenizer cuts the text into pieces that it knows, and gives each its number. The embedding is a look-up: token
# $t$ gets the row of a table that its id names,
#
# $$e_t = E[\mathrm{id}_t].$$

# %%
text = "Once upon a time there was a"
ids = tokenizer([text], return_tensors="np")["input_ids"]
labels = viz.attention_maps(model, text).tokens
print("tokens", list(labels))
print("ids", ids.shape, ids.tolist())

x = layers.embedding(ids, **params["embed_tokens"])
print("x = E[ids]", x.shape)

# %% [markdown]
# ## One layer, as the model computes it
#
# The paper (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) writes a layer in two lines,
#
# $$Y = \mathrm{MultiHead}(\mathrm{LN}(X)) + X \tag{eq. 4}$$
# $$X' = \mathrm{SwiGLU}(\mathrm{LN}(Y)) + Y \tag{eq. 5}$$
#
# and so does refdiff. This is the function that runs, not a copy for this page:

# %%
print(inspect.getsource(diffllama.decoder_layer))

# %% [markdown]
# ## The first layer by hand
#
# We call the same layer functions one after the other. First the norm (LN in the paper, an RMS norm): each token is
# scaled to unit root mean square. No token sees another here.

# %%
p = params["layers"][0]
normed = layers.rms_norm(x, **p["input_layernorm"], eps=config.rms_norm_eps)
print("LN(X)", normed.shape)

# %% [markdown]
# Three matrices turn each token into what it asks (Q), what it offers to be found by (K), and what it gives when it
# is found (V). Each is cut into heads.

# %%
attention = p["self_attn"]
B, T, D = normed.shape
q, k, v = (
    layers.linear(normed, **attention[name]).reshape(B, T, -1, config.head_dim).swapaxes(1, 2)
    for name in ("q_proj", "k_proj", "v_proj")
)
print("Q (B, H, T, d)", q.shape)
print("K (B, K, T, d)", k.shape)
print("V (B, K, T, d)", v.shape)

# %% [markdown]
# Two heads make a pair, and a pair shares one value of twice the width. Positions come in by RoPE, which turns Q and
# K by an angle that grows with the position (notebook 02).

# %%
v = layers.value_pairs_hf(v)
frequencies, scale = layers.rope_frequencies(config.rope_parameters, config.head_dim, config.max_position_embeddings)
cos, sin = layers.rope_cos_sin(np.arange(T)[None], frequencies, scale, x.dtype)
q, k = layers.rope(q, cos, sin), layers.rope(k, cos, sin)
print("V in pairs (B, K/2, T, 2d)", v.shape)
print("cos, sin (1, 1, T, d/2)", cos.shape, sin.shape)

# %% [markdown]
# Now the step that gives the model its name (eq. 1; notebook 03 is about it alone). Each pair has two attention maps,
# and the second is taken away from the first, λ times:
#
# $$\mathrm{DiffAttn}(X) = \left(\mathrm{softmax}\frac{Q_1K_1^\top}{\sqrt d} - \lambda\,
# \mathrm{softmax}\frac{Q_2K_2^\top}{\sqrt d}\right)V \tag{eq. 1}$$
#
# A row of a map has one token's weights over itself and the tokens before it, and the product with V adds up their
# values with these weights. This is the only step in which a token learns of others: embedding, norms, matrices and
# the feed-forward network work on each token by itself, and RoPE only turns it by its own position.
#
# `diff_heads_hf` does it for all pairs, norms each head, scales it by $1 - \lambda_{init}$, and lays the heads side
# by side (eq. 3). The output matrix mixes them.

# %%
vectors = (attention[name] for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"))
start = layers.lambda_init(0)
lambda_ = layers.diff_lambda(*vectors, start)
heads = layers.diff_heads_hf(q, k, v, lambda_, start, config.rms_norm_eps)
attended = layers.linear(heads, **attention["o_proj"])
print("λ", lambda_.shape, f"= {float(lambda_):.3f}, it began near λ_init = {start:.3f}")
print("heads, side by side (B, T, H d)", heads.shape)
print("MultiHead(LN(X)) (B, T, D)", attended.shape)

# %% [markdown]
# The feed-forward network works on each token by itself again. Both results are *added* to what came in: a layer
# corrects its input, and does not replace it.

# %%
y = x + attended
normed = layers.rms_norm(y, **p["post_attention_layernorm"], eps=config.rms_norm_eps)
after_first_layer = y + layers.swiglu(normed, **p["mlp"], act=config.hidden_act)
print("Y (B, T, D)", y.shape)
print("X' (B, T, D)", after_first_layer.shape)

# %% [markdown]
# ## All layers, and the next token
#
# The other layers do the same with weights of their own. After the last one, a norm, and a product with the table of
# embeddings: a score (logit) for every token of the vocabulary. Only the last row matters for what comes next.

# %%
out = model(ids, output_hidden_states=True, output_attentions=True)
for layer, state in enumerate(out.hidden_states[:-1]):
    print(f"into layer {layer}", state.shape, f"size of the last token {np.linalg.norm(state[0, -1]):6.2f}")
print("after the last norm", out.hidden_states[-1].shape)
print("logits (B, T, V)", out.logits.shape)

probabilities = layers.softmax(out.logits[0, -1])
for token in np.argsort(-probabilities)[:5]:
    print(f"{probabilities[token]:6.3f} {tokenizer.decode([int(token)])!r}")

# %% [markdown]
# Where did the tokens look? One picture for each layer (down) and each pair of heads (across): what multiplies V,
# that is $A_1 - \lambda A_2$. In each picture queries go down and keys across, in the order of the text. Blue is a
# weight above zero, orange one below. Blank is hidden (above the diagonal stand later tokens) or next to no weight.

# %%
viz.plot_attention_grid(out, tokens=labels)

# %% [markdown]
# ## Exercise
#
# Nothing in this notebook looked at a later token. Which of the shapes above would change if you ran the text without
# its last token, and would the numbers of the tokens that stay change? Try it: `model(ids[:, :-1])`.
#
# <details>
# <summary>Answer</summary>
#
# Every T becomes T − 1, and nothing else changes: no weight has an axis for positions. The numbers of the tokens that
# stay are the same to rounding, because a query sees only itself and what came before it (the causal mask). That is
# why keys and values can be kept in a cache (notebook 05).
#
# ```python
# shorter = model(ids[:, :-1])
# np.abs(shorter.logits - out.logits[:, :-1]).max()  # about 1e-14
# ```
#
# </details>
#
# ## What must hold
#
# The layer by hand is the layer of the model, and the last row of logits decides the next token.

# %%
assert np.allclose(after_first_layer, out.hidden_states[1], rtol=0, atol=1e-10)
assert model.generate(ids, max_new_tokens=1)[0, -1] == probabilities.argmax()

# %% [questions]
# Q: Which steps let one token know of another, and which work on each token by itself?
# A: Only attention (eq. 1, inside MultiHead) mixes tokens. Embedding, norms, the matrices, and SwiGLU work on each
#    token by itself; RoPE only adds its own position.
#
# Q: What is the shape of the logits, and which part of them decides the next token?
# A: (B, T, V): a score for each token of the vocabulary at each position. The last position's row decides.
#
# Q: Why are Y and X' sums?
# A: Eq. 4 and 5 add the result of attention and of the feed-forward network to their input: a layer corrects what
#    came in and does not replace it.
