"""The seam: what `ops_for` and `overlay` promise."""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

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


def test_cupy_gets_its_kernels_and_its_uploads(monkeypatch):
    """Which is chosen; what they do is in their own tests."""
    import array_api_compat

    from refdiff.backends import device_placement
    from refdiff.backends.cupy import CupyKernels, device, upload

    cupy, made = SimpleNamespace(), MagicMock()
    made.return_value.side_effect = lambda x: ("there", x)
    monkeypatch.setattr(array_api_compat, "is_cupy_namespace", lambda xp: xp is cupy)
    monkeypatch.setattr(array_api_compat, "is_numpy_namespace", lambda xp: xp is np)
    monkeypatch.setattr(device, "Device", lambda: SimpleNamespace())
    monkeypatch.setattr(upload, "Upload", made)
    assert isinstance(backend_for(cupy).kernels, CupyKernels)
    assert backend_for(cupy).chunk_size == 8192
    assert backend_for(cupy, "reference").kernels is None
    with device_placement(cupy, 1, 40) as put:
        x = np.ones(5)
        assert put(x)[1] is x
        assert put("there already") == "there already"
        made.return_value.close.assert_not_called()
    made.assert_called_once_with(40, 1)
    made.return_value.close.assert_called_once_with()
    with device_placement(np, None, 40) as put:
        assert put(x) is x
