"""Every threshold of the NumPy kernels, with the evidence for its value.

Measured on machines with two cores, NumPy 2.4 and OpenBLAS 0.3.31: Zen 3 (AVX2), Zen 4 and Sapphire Rapids (AVX-512).
Where an entry names no processor, it held on each that was tried. `refdiff bench` measures on yours.
"""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_info

AVX512_CORES = ("SkylakeX", "Cooperlake", "SapphireRapids")
"""OpenBLAS's names of its kernels for AVX-512; it has none of their own for Zen 4 and 5."""


@functools.cache
def has_avx512() -> bool:
    """Return whether BLAS multiplies with AVX-512: what OpenBLAS says, or the flags that Linux lists for the processor.

    OpenBLAS is asked first: the environment variable OPENBLAS_CORETYPE makes it multiply as an older processor would.
    """
    for library in threadpool_info():
        if library["internal_api"] == "openblas":
            return library["architecture"] in AVX512_CORES
    with contextlib.suppress(OSError):
        return bool(re.search(r"^flags\s*:.*\bavx512f\b", Path("/proc/cpuinfo").read_text(), re.M))
    return False


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The thresholds. `dataclasses.replace(Tuning(), few_tokens=16)` changes one."""

    # Threads and memory
    parallel_ops: int = 2**19
    """Multiplications or exponentials: the fewest for which a second thread pays."""
    parallel_elements: int = 2**17
    """Numbers of a norm, a sum or a rotation: the fewest for which a second thread pays."""
    python_threads: int = 4
    """Threads: up to so many, Python threads read the weights for one token faster than BLAS threads (1.14 times at
    128 tokens of context, 1.09 at 2,048; two threads). Beyond two it is an estimate: barriers cost more."""
    blas_weights: int = 2**22
    """Weights of a matrix: the fewest that one token multiplies on BLAS threads, where there are more threads."""
    kept_bytes: int = 2**18
    """Bytes: smaller arrays come from memory that the process already has, so that keeping them gains nothing."""
    pass_buffer: int = 128
    """Numbers in NumPy's buffer during a pass. NumPy copies shorter rows of strided arrays there; at its own 8,192 that
    is nearly all rows, and the copy takes as long as the work."""
    matmul_buffer: int = 2**13
    """Numbers in NumPy's buffer for stacked products: with `pass_buffer` these are 5 % slower."""
    training_tokens: int = 2048
    """Tokens that one thread trains on at a time: enough for products at full speed, and one barrier per
    step."""

    # Elementwise steps, norms and RoPE
    block_elements: int = 2**17
    """Numbers per block: temporaries (0.5 MB in float32) stay in a core's cache, and the calls cost little."""
    norm_vjp_elements: int = 2**15
    """Numbers per block whose rows are summed for a weight's gradient: a sum of short sums is more exact."""
    feature_norm_vjp_elements: int = 2**18
    """Numbers per feature-major block of the norm's backward pass, which has many short steps: in smaller ones, threads
    wait for the interpreter."""
    small_elements: int = 2**15
    """Numbers: up to so many are added, normed or rotated in one step; blocks would take longer."""
    rowwise_tokens: int = 8
    """Tokens: up to so many, feature-major, are normed token by token; NumPy's strided steps are slower."""
    block_tokens: int = 512
    """Tokens per block of feature-major arrays; see `block_elements`."""
    mlp_tokens: int = 512
    """Tokens per chunk of the feed-forward network: what lies between its products stays in the cache (chunks of 512
    cost 0 to 3 %, of 256 5 %)."""

    # Products with weights
    unpacked_tokens: int = field(default_factory=lambda: 24 if has_avx512() else 1)
    """Tokens: up to so many are multiplied in tiles that BLAS does not pack; above 1, prompts and attention take such
    tiles too. OpenBLAS has code for unpacked products on AVX-512 only. There, beside packed tiles, 8 and 16 tokens
    are 1.6 times as fast (Sapphire Rapids), 1.3 times (Zen 4); 32, 128 and 512 tokens 1.5, 1.15 and 1.03 times (Zen 4).
    `refdiff bench --rows product:8` measures it."""
    unpacked_ops: int = 10**6
    """rows · N · K: OpenBLAS packs larger products, and just above takes twice as long."""
    few_tokens: int = 24
    """Tokens: up to so many, unpacked tiles of the weight are faster than whole halves of it."""
    exact_tokens: int = field(default_factory=lambda: 9 if has_avx512() else 1)
    """Tokens, or heads that share keys: up to so many, BLAS sums terms in several sums side by side, which is more
    exact than one sum. Without AVX-512 it does so for one alone: one token's attention with 4 heads together had 1.2 to
    1.6 times the layer's error, head by head 0.9 to 1.1, and was no faster (AMD EPYC with AVX2, 2 threads)."""
    long_terms: int = 8192
    """Terms of a product with up to `exact_tokens` tokens: longer ones BLAS sums one vector after another."""
    vector_tokens: int = 4
    """Tokens: up to so many, where BLAS packs, each is multiplied as a vector while the cache holds the tile (2, 3 and
    4 tokens take 1.3, 1.6 and 1.75 one-token passes, Zen 3)."""
    vector_weights: int = 2**15
    """Weights of such a tile: a core's second cache holds it from the first token to the last."""
    token_multiple: int = 8
    """Tokens: packed tiles are padded to a multiple of it; 7 tokens cost more than 8."""
    packed_rows: int = 256
    """Rows of a packed tile: it stays in the cache while it is multiplied (8 tokens through the full-size model took
    349 ms in blocks of 512 rows, 509 ms with whole weights)."""
    tile_rows: int = 32
    """Rows of an unpacked tile at most; it is a multiple of 4."""
    tile_terms: int = 512
    """Terms of a product of an unpacked tile: longer sums are added up in parts. 1.1 to 1.3 times the layer's error;
    parts of 256 have 0.8 times and are 10 to 30 % slower."""
    float32_parts: int = 64
    """Parts: more are added up in float64, or so many at first; one long float32 sum would lose digits."""
    summed_products: int = 2**16
    """Numbers of all parts together before they are added up: they stay in the cache."""
    blocked_outputs: int = 2048
    """Outputs of all weights together from which copying many tokens into blocks pays."""
    block_width: int = 64
    """Tokens or keys side by side in a block. With tiles of 28 rows and 512 terms, prompts of 32, 128 and 512 tokens
    are 1.38, 1.14 and 1.05 times as fast as in packed products (AVX-512)."""
    cached_blocks: int = 2**20
    """Numbers of token blocks that a tile of the weight meets before the next: about a core's cache."""
    read_weights: int = 2**21
    """Weights that a thread reads at a time for one token: few enough that the threads end together."""
    released_outputs: int = 512
    """Outputs: `np.matmul` keeps the interpreter for 500 results or fewer, and the other threads wait."""
    cached_vector: int = 4096
    """Terms: up to so many, the token stays in a core's first cache beside each row."""
    dot_terms: int = 2**16
    """Terms of one token: longer sums are added up in parts of `long_terms`. Without AVX-512 one sum of 262,144 terms
    had 5.7 times the layer's error; no model has so many."""
    stacked_rows: int = 4
    """Rows longer than `cached_vector` are multiplied so many at a time: of 8,192 terms 30 GB/s, by eight 29 GB/s."""
    deep_ratio: int = 6
    """A gradient with so many times more terms than rows or columns is cut over its terms."""
    deep_terms: int = 1024
    """Terms of each part of it. The parts do not depend on the threads, so neither do the bits."""

    # Weights kept in 16 bits
    expanded_weights: int = 2**20
    """Weights expanded at a time. More than a core's own cache, but on shorter steps two threads take turns at the
    interpreter. With the steps of half_weights.py, one token of 2048 × 8192 went from 9.6 to 2.9 ms in bfloat16 and
    from 24 to 5 ms in float16 (Zen 3)."""
    expanded_rows: int = 256
    """Rows expanded at a time, at least, for many tokens: BLAS packs the tokens anew for each product."""

    # Attention
    cached_scores: int = 2**17
    """Scores per elementwise step: 0.5 MB in float32, what a core's cache holds."""
    safe_score: float = 40.0
    """Scores below need no maximum subtracted: neither e^40 nor a sum of them overflows, nor does e^−40 underflow."""
    safe_keys: int = 64
    """Keys: a query that sees fewer always has its maximum subtracted; with one key its weight is then exactly 1, and
    1 − λ exact."""
    exact_scores: int = 2**12
    """Scores of a head: up to so many, each head is multiplied by itself as in the layer; BLAS sums small results more
    exactly (heads together had 2 to 3 times the layer's error for 18 to 45 tokens)."""
    block_scores: int = 2**20
    """Scores of one map in a block of queries: 4 MB in float32, rows enough for products at full speed."""
    block_queries: int = 64
    """Queries in a block at most: more would compute too much of the triangle that causality hides."""
    grouped_scores: int = 2**19
    """Scores of one map: a block takes several heads up to so many, since threads that often need the interpreter wait
    for each other."""
    narrow_values: int = 16
    """Features of a value: fewer are multiplied as in the layer; BLAS sums them less exactly as rows of a product."""
    few_queries: int = 16
    """Queries: fewer go through the decode kernel; a prompt is cut into blocks of no fewer, but for the last."""
    decode_scores: int = 2**18
    """Scores of both maps that a thread holds at a time while decoding: 1 MB in float32."""
    decode_parallel_scores: int = 2**15
    """Scores of one map from which a second thread pays while decoding: 2,048 keys of 16 heads."""
    decode_blas_ops: int = 2 * 10**6
    """Multiplications: where BLAS has the threads, larger products of keys are left whole to it (8,192 keys: a Python
    thread beside BLAS's costs 6 % of a step)."""
    key_tile: int = 256
    """Keys at most in a tile: BLAS does not pack so few; tiles of 384 to 512 are 2.3 times slower."""
    min_key_tile: int = 64
    """Keys at least in a tile, where the queries are so many that BLAS packs it anyway."""
    value_parts: int = 4
    """Parts at least into which weights times values are summed: at 2,053 keys one sum was 3 times as far off as the
    layer."""
    min_value_tile: int = 16
    """Values in such a part at least; `key_tile` at most."""
    value_terms: int = 256
    """Keys whose values all rows of a prompt's attention weights meet at a time; twice as many are no faster."""
    repeatable_scores: bool = field(default_factory=has_avx512)
    """Whether BLAS gives a score the same bits in blocks of any size, so that the backward pass may use the
    log-sum-exps of the forward pass. Without AVX-512 it does not: gradients had 3 to 11 times the layer's error where
    scores were in the hundreds; with sums of its own the backward pass has 0.9 to 1.5 times (AMD EPYC with AVX2)."""
    vjp_scores: int = 2**17
    """Scores of one map in a block of the backward pass, which holds four arrays of them, the forward pass two."""
    vjp_queries: int = 128
    """Queries in such a block at most."""
