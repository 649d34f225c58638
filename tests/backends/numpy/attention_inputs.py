"""Queries, keys, values and a λ for attention over two maps."""

import numpy as np


def streams(B, H, K, T, S, d, e, scale=1.0):
    g = np.random.default_rng(T + S)
    q1, q2 = scale * g.normal(size=(2, B, H, T, d))
    k1, k2 = g.normal(size=(2, B, K, S, d))
    return q1, k1, q2, k2, g.normal(size=(B, K, S, e)), np.float64(0.7)
