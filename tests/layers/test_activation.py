"""The elementwise functions that `hidden_act` in a config.json may name."""

import numpy as np
import pytest

from refdiff.layers import activation, activation_vjp
from refdiff.layers.activation import ACTIVATIONS, DERIVATIVES, NAMES, erf
from tests.layers import by_loops
from tests.layers.by_loops import DIGITS, exact, rounded
from tests.layers.vjps import KINKS, own_weight
from tests.tolerances import EXACT, FLOAT64, close

FAR = [-1000.0, -87.3, -30.0, 30.0, 87.3, 1000.0]
GRID = np.concatenate([np.linspace(-12, 12, 601), [-1e-9, 1e-9], FAR])[:, None]
SLOPES_AT = [-8.0, -3.5, -2.1, -1.0, -0.3, 0.0, 0.2, 0.7, 1.3, 2.2, 3.4, 5.5, 6.5, 9.5, 10.1, 11.0, *FAR]
# at −2, −1, 0, 1 and 7; to 15 digits, from the definitions
BY_HAND = {
    "gelu": (-0.0455002638963584, -0.158655253931457, 0.0, 0.841344746068543, 6.99999999999104),
    "gelu_10": (-0.0455002638963584, -0.158655253931457, 0.0, 0.841344746068543, 6.99999999999104),
    "gelu_new": (-0.045402305912225, -0.158808009391723, 0.0, 0.841191990608277, 7.0),
    "hardswish": (-1 / 3, -1 / 3, 0.0, 2 / 3, 7.0),
    "laplace": (0.0, 7.17372612543286e-10, 0.0060944596179356, 0.85042964928457, 1.0),
    "leaky_relu": (-0.02, -0.01, 0.0, 1.0, 7.0),
    "linear": (-2.0, -1.0, 0.0, 1.0, 7.0),
    "mish": (-0.252501482695709, -0.303401461374109, 0.0, 0.86509838826731, 6.99998837980974),
    "quick_gelu": (-0.0643413768557919, -0.154204234067179, 0.0, 0.845795765932821, 6.99995312830332),
    "relu": (0.0, 0.0, 0.0, 1.0, 7.0),
    "relu2": (0.0, 0.0, 0.0, 1.0, 49.0),
    "relu6": (0.0, 0.0, 0.0, 1.0, 6.0),
    "sigmoid": (0.119202922022118, 0.268941421369995, 0.5, 0.731058578630005, 0.999088948805599),
    "silu": (-0.238405844044235, -0.268941421369995, 0.0, 0.731058578630005, 6.99362264163919),
    "sqrtsoftplus": (0.356269576364545, 0.559697853773108, 0.832554611157698, 1.14597630320972, 2.64592355642671),
    "tanh": (-0.964027580075817, -0.761594155955765, 0.0, 0.761594155955765, 0.999998336943945),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    close(activation(np.array([-2.0, -1.0, 0.0, 1.0, 7.0])[:, None], name)[:, 0], np.array(BY_HAND[name]), 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_precision(name: str) -> None:
    expected = rounded([[by_loops.ACTIVATIONS[name](x)] for x in exact(GRID[:, 0])])
    actual = activation(GRID, name, *own_weight(name))
    # to 1e-13 of the larger of the function and its argument: far out on the left gelu is a difference of large numbers
    scale = np.maximum(np.abs(expected), np.abs(GRID))
    close(np.hstack([actual, scale]), np.hstack([expected, scale]), FLOAT64)


# the others are differences of larger numbers on the left
@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(("gelu", "laplace"))])
def test_small_results_are_precise_too(name: str) -> None:
    x = np.concatenate([np.linspace(-30, -1e-3, 101), np.linspace(1e-3, 30, 101)])[:, None]
    close(
        activation(x, name, *own_weight(name)),
        rounded([[by_loops.ACTIVATIONS[name](z)] for z in exact(x[:, 0])]),
        FLOAT64,
    )


@pytest.mark.no_arrays
def test_every_function_has_its_derivative_and_values_by_hand() -> None:
    assert set(DERIVATIVES) == set(ACTIVATIONS.values())
    assert {ACTIVATIONS[name] for name in BY_HAND} == set(DERIVATIVES)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_that_of_the_definition(name: str) -> None:
    x = np.setdiff1d(SLOPES_AT, [*KINKS.get(name, {})])
    expected = rounded([DIGITS.diff(by_loops.ACTIVATIONS[name], z) for z in exact(x)])
    actual = activation_vjp(np.full(x.shape, 2.0), x, name, *own_weight(name))[0]
    error = np.abs(actual - 2 * expected)
    n = error.argmax()
    assert error[n] < 1e-12, f"{name} at {x[n]}: its slope is {actual[n] / 2}, not {expected[n]}"


@pytest.mark.no_arrays
@pytest.mark.parametrize("name", NAMES)
def test_kinks_are_where_the_definition_has_them(name: str) -> None:
    f, h = by_loops.ACTIVATIONS[name], DIGITS.mpf("1e-9")
    third_differences = {x: f(x + 2 * h) - 3 * f(x + h) + 3 * f(x) - f(x - h) for x in exact(np.linspace(-12, 12, 49))}
    found = {float(x) for x, difference in third_differences.items() if abs(difference) > 1e-3 * h**2}  # else h³ f‴
    assert found == set(KINKS.get(name, {})), "the kinks of its definition are not those of tests/layers/vjps.py"


@pytest.mark.parametrize("name", KINKS)
def test_derivative_at_a_kink(name: str) -> None:
    x = np.array(list(KINKS[name]))[:, None]
    actual = activation_vjp(np.ones(x.shape), x, name, *own_weight(name))[0]
    close(actual, np.array(list(KINKS[name].values()))[:, None], FLOAT64)


def test_the_gradient_of_the_weight_of_prelu() -> None:
    x, g, weight = np.array([[-2.0, 3.0], [-5.0, 0.0]]), np.array([[7.0, 11.0], [13.0, 17.0]]), np.array([0.5])
    dx, dweight = activation_vjp(g, x, "prelu", weight)
    close(dx, np.array([[3.5, 11.0], [6.5, 8.5]]), EXACT)
    close(dweight, np.array([-79.0]), EXACT)  # 7 · (−2) + 13 · (−5)


def test_error_function() -> None:
    x = np.linspace(-7, 7, 1401)
    expected = rounded([DIGITS.erf(z) for z in exact(x)])
    assert np.abs(erf(x) - expected).max() < 4e-16
    assert abs(erf(np.array(0.0))) < 2e-16
    close(erf(np.array([[-40.0], [40.0]])), np.array([[-1.0], [1.0]]), EXACT)
    close(erf(-x), -erf(x), 4e-16)
