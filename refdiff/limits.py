"""The ranges of options, for `generate` and the command line alike."""

LARGEST = 2**31 - 1
"""The largest accepted count or token id."""
FAR_BEYOND = 10
"""Contexts that a prompt or a text may fill: the time grows with the square of the length."""
SMALLEST_DIVISOR = 1e-6
"""The smallest accepted divisor of scores; much smaller ones make the scores infinite."""

OPTIONS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, LARGEST),
    "temperature": (SMALLEST_DIVISOR, 1e6),
    "top_k": (0, LARGEST),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (SMALLEST_DIVISOR, 1000),
    "no_repeat_ngram_size": (0, LARGEST),
    "num_beams": (1, 1000),
}
"""The smallest and the largest value of each option. A temperature of 0 is accepted too and means greedy decoding."""

MAX_TEMPLATE = 100_000
"""The most characters of a chat template; those in use have from 1,000 to 60,000."""
