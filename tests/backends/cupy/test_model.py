"""The whole model on the kernels of CUDA, run on a CPU: logits, cached tokens, generated text, gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.backends.cupy import CupyBackend, CupyKernels
from refdiff.model.weights import flatten, nest
from tests.cuda.emulation import EmulatedDevice, OnDevice
from tests.model.models import VARIANT_NAMES
from tests.model.variants import LAYERS

SIZES = {
    "vocab_size": 41, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 41, size=(2, 7))
MASK = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7])


def on_the_device(model: Any) -> EmulatedDevice:
    """Give a model in NumPy the kernels of CUDA."""
    device = EmulatedDevice(order=2)
    give(model, CupyKernels(device))
    return device


def give(model: Any, kernels: CupyKernels) -> None:
    """Have a model compute with these kernels."""
    model.backend = CupyBackend(kernels)
    model.ops = model.backend.ops


def on_device_only(model: Any) -> None:
    """Have the weights of a model refuse to be looked at by the host."""
    model.params = nest({name: x.view(OnDevice) for name, x in flatten(model.params).items()})


@contextlib.contextmanager
def no_layer_of(names: tuple[str, ...], model: Any) -> Iterator[None]:
    """Fail where one of these calls is left to its layer."""
    for name in names:
        kernel = getattr(model.backend.kernels, name)

        def served(*args: Any, _kernel: Any = kernel, _name: str = name, **kwargs: Any) -> Any:
            result = _kernel(*args, **kwargs)
            assert result is not NotImplemented, f"{_name} was left to the layer"
            return result

        setattr(model.backend.kernels, name, served)
    give(model, model.backend.kernels)
    yield


def models(**config: Any) -> tuple[Any, Any]:
    """The same weights twice: with the kernels of CUDA, and as the equations in float64."""
    of = refdiff.DiffLlamaConfig(**{**SIZES, **config})
    fast = refdiff.DiffLlamaForCausalLM.from_config(of, seed=3)
    exact = refdiff.DiffLlamaForCausalLM.from_config(of, seed=3, dtype="float64", kernels="reference")
    for name, x in flatten(exact.params).items():
        x[...] = flatten(fast.params)[name]
    return fast, exact


def stored_models(folder: Path, dtype: str) -> tuple[Any, Any]:
    """The same of weights of 16 bits, which stay so for the kernels of CUDA."""
    of = refdiff.DiffLlamaConfig(**SIZES)
    refdiff.DiffLlamaForCausalLM.from_config(of, seed=3, dtype=dtype).save_pretrained(folder)
    fast = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, weights="stored")
    assert fast.params["model"]["layers"][0]["mlp"]["up_proj"]["weight"].dtype.name == dtype
    return fast, refdiff.DiffLlamaForCausalLM.from_pretrained(folder, dtype="float64", kernels="reference")


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_a_model_is_its_equations(variant: str) -> None:
    fast, exact = models(variant=variant)
    device = on_the_device(fast)
    with no_layer_of(("rms_norm", "rope", "swiglu", "embedding"), fast):
        for options in ({}, {"use_cache": False}, {"attention_mask": MASK}):
            ours, theirs = fast(IDS, **options), exact(IDS, **options)
            np.testing.assert_allclose(ours.logits, theirs.logits, atol=3e-6)
            assert ours.logits.dtype == np.float32
        next_ids = IDS[:, :1]
        ours, theirs = (m(next_ids, cache=o.cache, attention_mask=np.pad(MASK, ((0, 0), (0, 1)), constant_values=1))
                        for m, o in ((fast, ours), (exact, theirs)))  # fmt: skip
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=3e-6)
    of_v1 = {"diff_lambda"} & set(LAYERS[variant])
    assert set(device.launched) == {"linear", "rms_norm", "rope", "rope_append", "gated_linear", "attention"} | of_v1


def test_generated_text_and_gradients_are_those_of_the_equations() -> None:
    fast, exact = models()
    device = on_the_device(fast)
    options = {"max_new_tokens": 6, "eos_token_id": None}
    np.testing.assert_array_equal(fast.generate(IDS, **options), exact.generate(IDS, **options))
    (loss, grads), (true_loss, true_grads) = (m.loss_and_grad(IDS, labels=IDS) for m in (fast, exact))
    np.testing.assert_allclose(loss, true_loss, rtol=1e-6)
    for name, truth in flatten(true_grads).items():
        rtol = 1e-2 if "lambda" in name else 2e-4  # what rows that share λ add to its gradient cancels
        atol = 3e-6 * np.abs(truth).max()
        np.testing.assert_allclose(flatten(grads)[name], truth, rtol=rtol, atol=atol, err_msg=name)
    assert {"row_sums", "to_queries", "to_keys", "to_rows", "to_weight"} <= set(device.launched)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_kept_in_16_bits(tmp_path: Path, dtype: str) -> None:
    fast, exact = stored_models(tmp_path, dtype)
    device = on_the_device(fast)
    with no_layer_of(("linear", "rms_norm", "swiglu", "embedding", "diff_attention"), fast):
        few, many = fast(IDS).logits, fast(np.tile(IDS, (1, 2))).logits  # 14 rows in a kernel, 28 in cuBLAS
    assert "linear" in device.launched
    np.testing.assert_allclose(few, exact(IDS).logits, atol=3e-6)  # the weights are exact, and so is what they multiply
    scale = np.abs(many).max()
    np.testing.assert_allclose(
        many, exact(np.tile(IDS, (1, 2))).logits, atol=scale * (2**-6 if dtype == "bfloat16" else 2**-9)
    )


@pytest.mark.parametrize(
    "variant", ["hf", *(pytest.param(w, marks=pytest.mark.slow) for w in VARIANT_NAMES if w != "hf")]
)
def test_the_host_asks_for_no_number_on_the_way(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, decoding and gradients only hand work to the device; of text, one id a row and step comes back.

    Labels, which are not of the device here, are looked at once a step: `cross_entropy` refuses unknown ones.
    """
    model, _ = models(variant=variant)
    device = on_the_device(model)
    on_device_only(model)
    monkeypatch.setattr(OnDevice, "refusing", True)
    out = model(IDS, attention_mask=MASK)
    model(IDS[:, :1], cache=out.cache, attention_mask=np.pad(MASK, ((0, 0), (0, 1)), constant_values=1))
    _, grads = model.loss_and_grad(IDS, labels=IDS)
    assert isinstance(out.logits, OnDevice)
    assert all(isinstance(x, OnDevice) for name, x in flatten(grads).items() if "norm" in name)
    fetched: list[tuple[int, ...]] = []

    def watched(x: Any) -> Any:
        fetched.append(x.shape)
        return np.array(x)

    for module in ("backends.cupy.sampling", "generation.context", "generation.decode"):
        monkeypatch.setattr(f"refdiff.{module}.to_numpy", watched)
    monkeypatch.setattr(OnDevice, "refusing", True)
    model.generate(IDS, max_new_tokens=4, eos_token_id=None)
    assert fetched == [(2,)] * 4
    assert device.launched.count("choose") == 4
