"""The elementwise functions that `hidden_act` in a config.json may name."""

import numpy as np
import pytest

from refdiff.layers import activation, activation_vjp
from refdiff.layers.activation import ACTIVATIONS, erf
from tests.layers import by_loops
from tests.layers.by_loops import DIGITS, exact, rounded
from tests.layers.vjps import KINKS
from tests.tolerances import EXACT, FLOAT64, close

FAR = [-1000.0, -87.3, -30.0, 30.0, 87.3, 1000.0]
GRID = np.concatenate([np.linspace(-12, 12, 601), [-1e-9, 1e-9], FAR])[:, None]
SLOPES_AT = [-8.0, -3.5, -2.1, -1.0, -0.3, 0.0, 0.2, 0.7, 1.3, 2.2, 3.4, 5.5, 6.5, 9.5, 10.1, 11.0, *FAR]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_precision(name: str) -> None:
    expected = rounded([[by_loops.ACTIVATIONS[name](x)] for x in exact(GRID[:, 0])])
    actual = activation(GRID, name)
    # to 1e-13 of the larger of the function and its argument: far out on the left gelu is a difference of large numbers
    scale = np.maximum(np.abs(expected), np.abs(GRID))
    close(np.hstack([actual, scale]), np.hstack([expected, scale]), FLOAT64)


# the others are differences of larger numbers on the left
@pytest.mark.parametrize("name", [n for n in sorted(ACTIVATIONS) if not n.startswith(("gelu", "laplace"))])
def test_small_results_are_precise_too(name: str) -> None:
    x = np.concatenate([np.linspace(-30, -1e-3, 101), np.linspace(1e-3, 30, 101)])[:, None]
    close(activation(x, name), rounded([[by_loops.ACTIVATIONS[name](z)] for z in exact(x[:, 0])]), FLOAT64)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_derivative_is_that_of_the_definition(name: str) -> None:
    x = np.setdiff1d(SLOPES_AT, [*KINKS.get(name, {})])
    expected = rounded([DIGITS.diff(by_loops.ACTIVATIONS[name], z) for z in exact(x)])
    (actual,) = activation_vjp(np.full(x.shape, 2.0), x, name)
    error = np.abs(actual - 2 * expected)
    n = error.argmax()
    assert error[n] < 1e-12, f"{name} at {x[n]}: its slope is {actual[n] / 2}, not {expected[n]}"


@pytest.mark.no_arrays
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_kinks_are_where_the_definition_has_them(name: str) -> None:
    f, h = by_loops.ACTIVATIONS[name], DIGITS.mpf("1e-9")
    third_differences = {x: f(x + 2 * h) - 3 * f(x + h) + 3 * f(x) - f(x - h) for x in exact(np.linspace(-12, 12, 49))}
    found = {float(x) for x, difference in third_differences.items() if abs(difference) > 1e-3 * h**2}  # else h³ f‴
    assert found == set(KINKS.get(name, {})), "the kinks of its definition are not those of tests/layers/vjps.py"


@pytest.mark.parametrize("name", KINKS)
def test_derivative_at_a_kink(name: str) -> None:
    x = np.array(list(KINKS[name]))[:, None]
    close(*activation_vjp(np.ones(x.shape), x, name), np.array(list(KINKS[name].values()))[:, None], FLOAT64)


def test_error_function() -> None:
    x = np.linspace(-7, 7, 1401)
    expected = rounded([DIGITS.erf(z) for z in exact(x)])
    assert np.abs(erf(x) - expected).max() < 4e-16
    assert abs(erf(np.array(0.0))) < 2e-16
    close(erf(np.array([[-40.0], [40.0]])), np.array([[-1.0], [1.0]]), EXACT)
    close(erf(-x), -erf(x), 4e-16)
