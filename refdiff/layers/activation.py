"""The elementwise functions that `hidden_act` in a config.json may name."""

from __future__ import annotations

import math
from collections.abc import Callable

from refdiff.arrays import Array, namespace


def activation(x: Array, name: str, weight: Array | None = None) -> Array:
    """Apply the activation that `hidden_act` names.

    Equation:
        see the function of each name in `ACTIVATIONS`; silu, x σ(x), is the Swish of Ye et al. 2024. prelu, with the
        learned weight w, is x where it is positive and w x elsewhere  (He et al. 2015, eq. 1)

    Used as:
        `activation(gate, config.hidden_act)` inside `swiglu`, with the layer's weight for prelu

    Shapes:
        x (...), for prelu weight (1,) -> (...)

    Raises:
        ValueError: an unknown name, prelu without a weight, or another with one.
    """
    _check("activation", name, weight)
    return ACTIVATIONS[name](x) if weight is None else namespace(x, weight).where(x > 0, x, weight * x)


def _check(function: str, name: str, weight: Array | None) -> None:
    """Raise ValueError for an unknown name, and where prelu has no weight or another has one."""
    if name not in NAMES:
        raise ValueError(f"{function}: name: got {name!r}, expected one of {', '.join(NAMES)}")
    given = None if weight is None else tuple(weight.shape)
    expected = (1,) if name == "prelu" else None
    if given != expected:
        shapes = ("no weight" if shape is None else f"shape {shape}" for shape in (given, expected))
        raise ValueError(f"{function}: weight: got {next(shapes)}, expected {next(shapes)} with {name!r}")


def activation_vjp(g: Array, x: Array, name: str, weight: Array | None = None) -> tuple[Array, ...]:
    """Pull a gradient back through `activation`.

    Equation:
        ∂L/∂x = g act′(x), with the derivative of its function in `DERIVATIVES`; at a kink the one that torch takes.
        prelu: ∂L/∂x = g where x is positive and w g elsewhere, ∂L/∂w = Σ g x over those x that are not

    Shapes:
        g and x (...) -> (...); with a weight (1,) also its gradient (1,)

    Raises:
        ValueError: as in `activation`, or `g` is not of the shape of `x`.
    """
    _check("activation_vjp", name, weight)
    xp = namespace(g, x, weight)
    if g.shape != x.shape:
        raise ValueError(f"activation_vjp: g: got shape {tuple(g.shape)}, expected {tuple(x.shape)}, like x")
    if weight is None:
        return (g * DERIVATIVES[ACTIVATIONS[name]](x),)
    return xp.where(x > 0, g, weight * g), xp.reshape(xp.sum(xp.where(x > 0, 0.0, g * x)), (1,))


def sigmoid(x: Array) -> Array:
    """σ(x) = 1 / (1 + e^−x), arranged so that nothing overflows."""
    xp = namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0, e) / (1 + e)


def d_sigmoid(x: Array) -> Array:
    """σ (1 − σ)."""
    s = sigmoid(x)
    return s * (1 - s)


def silu(x: Array) -> Array:
    """Compute x σ(x)  (Elfwing et al. 2017; Swish with β = 1)."""
    return x * sigmoid(x)


def d_silu(x: Array) -> Array:
    """σ (1 + x (1 − σ))."""
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def erf(x: Array) -> Array:
    """(2/√π) ∫₀ˣ e^(−u²) du, to about 2e-16: the standard has no erf.

    For z = |x| and t = 2 / (2 + z), log(erfc(z) e^(z²) / t) is smooth in t; `_ERFC` are its Chebyshev coefficients
    on 0 ≤ t ≤ 1, computed with mpmath at 60 digits and summed here by Clenshaw's recurrence.
    """
    xp = namespace(x)
    z = xp.abs(x)
    t = 2 / (2 + z)
    u = 4 * t - 2
    after, last = xp.zeros_like(u), xp.zeros_like(u)
    for c in reversed(_ERFC[1:]):
        last, after = c + u * last - after, last
    erfc = t * xp.exp(0.5 * _ERFC[0] + 0.5 * u * last - after - z * z)
    return xp.where(x >= 0, 1 - erfc, erfc - 1)


def d_erf(x: Array) -> Array:
    """(2/√π) e^(−x²)."""
    return 2 / math.sqrt(math.pi) * namespace(x).exp(-x * x)


def gelu(x: Array) -> Array:
    """Compute x Φ(x), Φ the normal distribution function  (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def d_gelu(x: Array) -> Array:
    """Φ(x) + x φ(x), φ the normal density."""
    z = x / math.sqrt(2)
    return 0.5 * (1 + erf(z)) + x * d_erf(z) / (2 * math.sqrt(2))


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of gelu  (Hendrycks and Gimpel 2016, section 2)."""
    return 0.5 * x * (1 + namespace(x).tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def d_gelu_tanh(x: Array) -> Array:
    """½ (1 + t) + ½ x (1 − t²) u′ with t = tanh(u)."""
    t = namespace(x).tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope


def gelu_10(x: Array) -> Array:
    """Gelu cut off at −10 and 10."""
    return namespace(x).clip(gelu(x), -10.0, 10.0)


def d_gelu_10(x: Array) -> Array:
    """Φ(x) + x φ(x) up to where gelu is cut off, 0 above."""
    return namespace(x).where(gelu(x) <= 10, d_gelu(x), 0.0)


def quick_gelu(x: Array) -> Array:
    """Compute x σ(1.702 x)  (Hendrycks and Gimpel 2016, section 2)."""
    return x * sigmoid(1.702 * x)


def d_quick_gelu(x: Array) -> Array:
    """The derivative of silu at 1.702 x."""
    return d_silu(1.702 * x)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return namespace(x).clip(x, 0.0, None)


def d_relu(x: Array) -> Array:
    """1 where positive."""
    return namespace(x).astype(x > 0, x.dtype)


def relu2(x: Array) -> Array:
    """max(x, 0)²  (So et al. 2021)."""
    return relu(x) ** 2


def d_relu2(x: Array) -> Array:
    """2 max(x, 0)."""
    return 2 * relu(x)


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6)."""
    return namespace(x).clip(x, 0.0, 6.0)


def d_relu6(x: Array) -> Array:
    """1 between 0 and 6."""
    return namespace(x).astype((x > 0) & (x < 6), x.dtype)


def leaky_relu(x: Array) -> Array:
    """Return x where it is positive, 0.01 x elsewhere."""
    return namespace(x).where(x > 0, x, 0.01 * x)


def d_leaky_relu(x: Array) -> Array:
    """1 where positive, 0.01 elsewhere."""
    return 0.01 + 0.99 * d_relu(x)


def hardswish(x: Array) -> Array:
    """Compute x relu6(x + 3) / 6  (Howard et al. 2019)."""
    return x * relu6(x + 3) / 6


def d_hardswish(x: Array) -> Array:
    """(2x + 3) / 6 between −3 and 3, 0 below, 1 above."""
    xp = namespace(x)
    return xp.where(x >= 3, 1.0, xp.where(x > -3, (2 * x + 3) / 6, 0.0 * x))


def softplus(x: Array) -> Array:
    """log(1 + eˣ), arranged so that nothing overflows."""
    xp = namespace(x)
    return relu(x) + xp.log1p(xp.exp(-xp.abs(x)))


def mish(x: Array) -> Array:
    """Compute x tanh(softplus(x))  (Misra 2019)."""
    return x * namespace(x).tanh(softplus(x))


def d_mish(x: Array) -> Array:
    """t + x (1 − t²) σ(x) with t = tanh(softplus(x))."""
    t = namespace(x).tanh(softplus(x))
    return t + x * (1 - t * t) * sigmoid(x)


def sqrtsoftplus(x: Array) -> Array:
    """√softplus(x)."""
    return namespace(x).sqrt(softplus(x))


def d_sqrtsoftplus(x: Array) -> Array:
    """σ(x) / (2 √softplus(x)), and 0 where both have underflowed to 0."""
    root = sqrtsoftplus(x)
    return sigmoid(x) / (2 * namespace(x).where(root > 0, root, 1.0))


def laplace(x: Array) -> Array:
    """Φ((x − √½) / σ) with σ² = 1 / 4π, as rounded in transformers  (Ma et al. 2022)."""
    return 0.5 * (1 + erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


def d_laplace(x: Array) -> Array:
    """The normal density of that mean and width."""
    width = 0.282095 * math.sqrt(2)
    return d_erf((x - 0.707107) / width) / (2 * width)


def identity(x: Array) -> Array:
    """Return x."""
    return x


def d_identity(x: Array) -> Array:
    """1."""
    return namespace(x).ones_like(x)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    return namespace(x).tanh(x)


def d_tanh(x: Array) -> Array:
    """1 − tanh(x)²."""
    return 1 - namespace(x).tanh(x) ** 2


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": hardswish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": identity,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu2,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "sqrtsoftplus": sqrtsoftplus,
    "swish": silu,
    "tanh": tanh,
}
"""Every `hidden_act` of transformers that has no weights of its own (prelu and xielu have)."""

NAMES = tuple(sorted([*ACTIVATIONS, "prelu"]))
"""What `hidden_act` may be."""

DERIVATIVES: dict[Callable[[Array], Array], Callable[[Array], Array]] = {
    gelu: d_gelu,
    gelu_10: d_gelu_10,
    gelu_tanh: d_gelu_tanh,
    hardswish: d_hardswish,
    identity: d_identity,
    laplace: d_laplace,
    leaky_relu: d_leaky_relu,
    mish: d_mish,
    quick_gelu: d_quick_gelu,
    relu: d_relu,
    relu2: d_relu2,
    relu6: d_relu6,
    sigmoid: d_sigmoid,
    silu: d_silu,
    sqrtsoftplus: d_sqrtsoftplus,
    tanh: d_tanh,
}
"""The derivative of each function of `ACTIVATIONS`."""

_ERFC = (
    -1.3026537197817094342,
    0.6419697923564902603,
    0.019476473204185836312,
    -0.0095615147868086316419,
    -0.0009465953444820368663,
    0.00036683949785276145187,
    0.000042523324806907771645,
    -0.000020278578112534243155,
    -1.6242900046470255134e-6,
    1.3036558355805232018e-6,
    1.5626441722066143054e-8,
    -8.5238095914926542293e-8,
    6.5290544390988511623e-9,
    5.059343495551469367e-9,
    -9.9136415649303358984e-10,
    -2.2736512229318302024e-10,
    9.6467911020154658047e-11,
    2.3940380830397503916e-12,
    -6.8860275264981949567e-12,
    8.9448792730970009834e-13,
    3.1309213993370181466e-13,
    -1.1270822361313051835e-13,
    3.8109052504573864334e-16,
    7.1060976139989127526e-15,
    -1.5230282017511846106e-15,
    -9.4574945523537258622e-17,
    1.2102371884360811459e-16,
    -2.8166630911616359056e-17,
)
