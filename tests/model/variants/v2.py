from refdiff import layers

LAYERS = ("diff_lambda_v2", "diff_heads_v2")
INTERLEAVED, VALUE_SIZE, QUERIES = True, 1, 2
SHAPES = {"lambda_proj.weight": ("H", "D")}
FIRST_VALUES = {"lambda_proj.weight": (0.0, "initializer_range")}


def heads(p, x, q, k, v, start, eps):
    return layers.diff_heads_v2(q, k, v, layers.diff_lambda_v2(x, **p["lambda_proj"]))
