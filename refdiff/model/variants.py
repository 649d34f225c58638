"""What the attention variants are called, and which of their heads are a pair."""

MODEL_TYPES = {"hf": "diffllama", "paper": "diff_transformer", "v2": "diff_transformer_v2", "none": "llama"}
"""How a file says which wiring it has. transformers knows the first and the last, and refuses the other two."""
PAIRING = {"hf": "halves", "paper": "interleaved", "v2": "interleaved", "none": None}
"""Which two heads are a pair, by variant: i and i + H/2, or 2i and 2i + 1, or none."""
