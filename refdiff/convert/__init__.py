"""The same function in another wiring: `convert` rearranges the weights, `prove` computes both and compares.

hf ↔ paper    the heads of q, k and v change places (pairs i, i + H/2 against 2i, 2i + 1), and the rows of each q and k
              head with them (RoPE in halves against interleaved); the columns of o_proj stay, being ordered by pairs in
              both. The weight w of unilm's norm goes into o_proj: W_O (w ⊙ y) = (W_O diag w) y; coming from hf it is 1.
              Where the model's ε differs from unilm's 1e-5, v_proj is scaled by s: RMSNorm(s c; ε) = RMSNorm(c; ε/s²).
none → v2     both queries of a pair become the Llama's one, and W_λ = 0: softmax − σ(0) softmax = softmax / 2, which
              W_O, doubled, makes whole again.
v2 → none     where W_λ = 0: λ is 1/2 everywhere, and W_O (A₁ − A₂/2) V = [W_O, −W_O/2] [A₁ V; A₂ V] is plain attention
              with twice the heads, or with as many where the two queries of each pair are equal.

Exact means in float64: weights in 16 bits are rounded again where they are multiplied, and `prove` says by how much.
In memory all wirings call the last projection o_proj; in files of paper it is out_proj, as in unilm's module.

The rest has no exact answer, and is refused. From a Llama to v1 (hf, paper) it is not λ that is in the way: λ_q1 = 0
and λ_q2 · λ_k2 = log(1 + λ_init) make it 0. (Zero weights for the second map would not: they make its scores equal,
which is uniform attention, not none.) It is the norm after attention, which divides each token's head by its own size,
and no weights undo that exactly. (Values scaled down until their squares vanish beside ε, and W_O scaled up as much,
come as near as rounding: RMSNorm(s c) → s c / √ε. Such weights leave float16 and cannot be trained on, so that is not a
conversion to give away.) For the same reason v1 becomes neither v2 nor a Llama.
"""

from refdiff.convert.proof import Proof, prove
from refdiff.convert.rewire import convert, convert_later

__all__ = ["Proof", "convert", "convert_later", "prove"]
