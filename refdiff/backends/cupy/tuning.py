"""Every threshold of the CUDA kernels, with the evidence for its value.

No GPU has measured most of them: each such entry says how it was reckoned. What the hardware or CUDA fixes, such as
registers and shared memory, stands in geometry.py and device.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The thresholds."""

    prompt_tokens: int = 8192
    """Tokens of all sequences that go through a model at once. A layer is a dozen launches or more and reads its
    weights once, however few the tokens: 1,024, enough for a CPU, leave a large GPU waiting. More need more memory:
    gate, up and their product, the widest arrays at a time, take 1.4 GB together for 14,336 features in float32."""
    few_rows: int = 16
    """Rows: up to so many, linear.cu reads the weight and keeps the rows in float32; more go to cuBLAS. Reckoned: a
    product of so few rows is bound by reading the weight."""
    waves: int = 2
    """Blocks that a multiprocessor should have to work on when keys are split. Reckoned: one computes while the other
    waits for memory."""
    min_split_keys: int = 128
    """Keys: the fewest that are worth a block of their own. Reckoned."""
    splits_per_warp: int = 2
    """Splits for each warp of its tile up to which attention_mma.cu, which splits no keys, is taken all the same.
    Reckoned: four warps keep the four tensor cores of a multiprocessor busy, which multiply 8 (T4) to 16 times (A100,
    H100) as many numbers in a cycle as its float32 units, and so make up for 8 splits."""
    min_capacity: int = 256
    """Tokens that the cache of a recorded step has capacity for at least: a longer text is recorded anew. Reckoned."""
    usual_steps: int = 3
    """Decoding steps before one is recorded. Reckoned: a recording costs about as much as these."""
    pinned_bytes: int = 32 * 1024 * 1024
    """Bytes of a pinned buffer for uploads: enough for full speed, little enough to pin anywhere."""
    progress_bytes: int = 256 * 1024 * 1024
    """Bytes of an upload from which a progress bar is shown: fewer arrive before it could be read."""
