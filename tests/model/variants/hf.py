from refdiff import layers

LAYERS = ("value_pairs_hf", "lambda_init", "diff_lambda", "diff_heads_hf")
INTERLEAVED, VALUE_SIZE, QUERIES = False, 1, 1
SHAPES = dict.fromkeys(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"), ("d",))
FIRST_VALUES = dict.fromkeys(SHAPES, (0.0, "lambda_std_dev"))


def heads(p, x, q, k, v, start, eps):
    lambda_ = layers.diff_lambda(*(p[name] for name in SHAPES), start)
    return layers.diff_heads_hf(q, k, layers.value_pairs_hf(v), lambda_, start, eps)
