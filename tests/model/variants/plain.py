from refdiff import layers

LAYERS = ("plain_heads",)
INTERLEAVED, VALUE_SIZE, QUERIES = False, 1, 1
SHAPES = {}
FIRST_VALUES = {}


def heads(p, x, q, k, v, start, eps):
    return layers.plain_heads(q, k, v)
