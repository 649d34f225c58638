"""Weights and config to hidden states, logits and losses."""
