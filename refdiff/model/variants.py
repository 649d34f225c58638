"""The names of the attention variants, and the pairing of their heads."""

MODEL_TYPES = {"hf": "diffllama", "paper": "diff_transformer", "v2": "diff_transformer_v2", "none": "llama"}
"""The `model_type` of each variant in a config.json. transformers refuses `paper` and `v2`."""
PAIRING = {"hf": "halves", "paper": "interleaved", "v2": "interleaved", "none": None}
"""Which two heads are a pair, by variant: i and i + H/2, or 2i and 2i + 1, or none."""
