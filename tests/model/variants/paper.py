from refdiff import layers

LAYERS = ("lambda_init", "diff_lambda", "diff_heads_paper")
INTERLEAVED, VALUE_SIZE, QUERIES = True, 2, 1
VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
SHAPES = {**dict.fromkeys(VECTORS, ("d",)), "subln.weight": ("2d",)}
FIRST_VALUES = {**dict.fromkeys(VECTORS, (0.0, "lambda_std_dev")), "subln.weight": (1.0, 0.0)}


def heads(p, x, q, k, v, start, eps):
    lambda_ = layers.diff_lambda(*(p[name] for name in VECTORS), start)
    return layers.diff_heads_paper(q, k, v, lambda_, p["subln"]["weight"], start)
