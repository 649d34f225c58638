"""The ranges of numbers that `generate`, the command line and files of prompts take alike."""

LARGEST = 2**31 - 1
"""The largest count or token id: more fits no array of ids, and no time."""
SMALLEST_DIVISOR = 1e-6
"""The smallest number that scores are divided by: a much smaller one makes them infinite."""

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
"""The least and the most of an option of `generate`; a temperature may be 0 too, which is greedy."""
