"""The seam: what `ops_for` and `overlay` promise."""

import sys
from types import SimpleNamespace

import array_api_strict
import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import backend_for, keep_half, ops_for, overlay

X = np.random.default_rng(0).normal(size=(2, 3, 5))
MLP = {
    "gate_proj": {"weight": np.random.default_rng(1).normal(size=(7, 5))},
    "up_proj": {"weight": np.random.default_rng(2).normal(size=(7, 5))},
    "down_proj": {"weight": np.random.default_rng(3).normal(size=(5, 7))},
}


def test_reference_ops_are_the_layers_themselves() -> None:
    ops = ops_for()
    assert set(vars(ops)) == set(layers.__all__)
    for name in layers.__all__:
        assert getattr(ops, name) is getattr(layers, name)


def test_unknown_kernels_are_refused_with_the_choice() -> None:
    with pytest.raises(ValueError, match='kernels: got \'quick\', expected "fast" or "reference"'):
        backend_for(np, "quick")


def test_nested_wrappers_use_the_outermost() -> None:
    base = ops_for()
    doubled = overlay(base, lambda name, f: (lambda *a, **k: 2 * f(*a, **k)) if name == "linear" else f)
    again = overlay(doubled, lambda name, f: f)
    once, twice = (ops.swiglu(X, **MLP, ops=ops) for ops in (doubled, again))
    np.testing.assert_array_equal(twice, once)
    assert not np.allclose(once, base.swiglu(X, **MLP))


def test_a_kernel_that_declines_leaves_the_call_to_its_layer() -> None:
    ops = ops_for(SimpleNamespace(rms_norm=lambda *args, **kwargs: NotImplemented))
    np.testing.assert_array_equal(ops.rms_norm(X, None, 1e-5), layers.rms_norm(X, None, 1e-5))
    assert isinstance(ops_for(), SimpleNamespace)


@pytest.mark.parametrize(("version", "stored"), [("13.6.0", False), ("14.0.0", True), ("15.1.0rc1", True)])
def test_matrices_are_kept_in_16_bits_if_cupy_multiplies_them(monkeypatch, version, stored):
    import array_api_compat

    cupy = SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(array_api_compat, "is_cupy_namespace", lambda xp: xp is cupy)
    assert keep_half("auto", cupy) is stored
    assert keep_half("stored", cupy)
    for given in (("expanded", cupy), ("auto", cupy, "reference"), ("auto", np), ("auto", array_api_strict)):
        assert not keep_half(*given)
