"""The answer for one kernel: pass, fail or inconclusive, for each tensor, with the numbers and the place."""
