import numpy as np
from puzzles import judge


def attention_map(q, k):
    T, S, d = q.shape[-2], k.shape[-2], q.shape[-1]
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(d)
    visible = np.arange(S) <= np.arange(T)[:, None] + S - T
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kernel(q, k, v, lambda_full):  # q (B, 12, T, 16), k and v (B, 4, S, 16)
    shared = q.shape[1] // k.shape[1]  # query heads share a key/value head
    v = np.concatenate(np.split(v, 2, axis=1), axis=-1)  # a pair of heads has one value of size 2d
    (q1, q2), (k1, k2) = np.split(q, 2, axis=1), np.split(k, 2, axis=1)
    k1, k2, v = (np.repeat(x, shared, axis=1) for x in (k1, k2, v))
    head = (attention_map(q1, k1) - lambda_full * attention_map(q2, k2)) @ v  # eq. 1
    head = head / np.sqrt((head * head).mean(axis=-1, keepdims=True) + 1e-5)
    return (1 - (0.8 - 0.6 * np.exp(-0.3 * 3))) * head  # eq. 3 in layer 3


judge(0, kernel)
