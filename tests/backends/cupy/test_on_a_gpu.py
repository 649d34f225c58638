"""`backend="cupy"` on a device: the kernels' results, and logits, text and gradients as on the CPU.

Without a device none runs, and tests/test_arrays.py has what is said then; tests/gpu_run.sh runs them where one is.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.arrays import to_numpy
from refdiff.backends.cupy import CupyKernels
from refdiff.generation.context import DecodingContext
from refdiff.model.cache import KVCache
from refdiff.model.weights import flatten
from tests.backends.cupy.cases import CASES
from tests.backends.cupy.test_kernels import CUDA, KERNELS, hold
from tests.backends.cupy.test_model import IDS, MASK, SIZES
from tests.backends.cupy.test_sampling import on_the_host
from tests.cuda.emulation import BFLOAT16
from tests.model.models import VARIANT_NAMES

if CUDA is not None and os.environ.get("REFDIFF_NO_POOL"):  # each array a piece of memory of its own
    CUDA.cuda.set_allocator(None)

on_cuda = pytest.mark.skipif(CUDA is None, reason="no CUDA device answers through CuPy")


def pair(**config: Any) -> tuple[Any, Any]:
    of = refdiff.DiffLlamaConfig(**{**SIZES, **config})
    return tuple(refdiff.DiffLlamaForCausalLM.from_config(of, seed=3, backend=name) for name in ("cupy", "numpy"))  # type: ignore[return-value]


@pytest.mark.parametrize("variant", () if CUDA is None else VARIANT_NAMES)
@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_logits_text_and_gradients(variant: str, head_dim: int) -> None:
    there, here = pair(variant=variant, head_dim=head_dim)
    for options in ({}, {"attention_mask": MASK}):
        ours, theirs = there(IDS, **options).logits, here(IDS, **options).logits
        np.testing.assert_allclose(to_numpy(ours), theirs, atol=1e-5)
    for options in ({}, {"do_sample": True, "seed": 4}):
        options |= {"max_new_tokens": 9, "eos_token_id": None}
        np.testing.assert_array_equal(there.generate(IDS, **options), here.generate(IDS, **options))
    (loss, grads), (true_loss, true_grads) = (m.loss_and_grad(IDS, labels=IDS) for m in (there, here))
    np.testing.assert_allclose(to_numpy(loss), true_loss, rtol=1e-5)
    for name, truth in flatten(true_grads).items():
        atol = 1e-4 * np.abs(truth).max() + 1e-9
        np.testing.assert_allclose(to_numpy(flatten(grads)[name]), truth, atol=atol, rtol=2e-2, err_msg=name)


def stored(config: refdiff.DiffLlamaConfig, folder: Any, dtype: str) -> Any:
    """A model on the device whose weights are of 16 bits there too."""
    if dtype == "bfloat16" and int(CUDA.__version__.split(".")[0]) < 14:
        pytest.skip("this CuPy has no bfloat16")
    refdiff.DiffLlamaForCausalLM.from_config(config, seed=3, dtype=dtype).save_pretrained(folder)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, backend="cupy", weights="stored")
    assert model.params["model"]["layers"][0]["mlp"]["up_proj"]["weight"].dtype.name == dtype
    return model


@on_cuda
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_kept_in_16_bits(tmp_path: Any, dtype: str) -> None:
    there = stored(refdiff.DiffLlamaConfig(**SIZES), tmp_path, dtype)
    here = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_allclose(to_numpy(there(IDS).logits), here(IDS).logits, atol=1e-5)
    many = np.tile(IDS, (1, 3))
    scale = np.abs(here(many).logits).max()
    np.testing.assert_allclose(to_numpy(there(many).logits), here(many).logits, atol=scale * 2.0**-6)


@on_cuda
@pytest.mark.parametrize(
    ("tokens", "recordings"),
    [pytest.param(20, 1, id="small"), pytest.param(300, 2, id="usual")],  # rooms of 256 and of 512 tokens
)
@pytest.mark.parametrize("weights", ["float32", "float16", "bfloat16"])
def test_decoding_is_recorded_and_replayed_as_it_is_done_step_by_step(
    tmp_path: Any, tokens: int, recordings: int, weights: str
) -> None:
    there, here = pair(max_position_embeddings=512)
    if weights != "float32":
        there = stored(here.config, tmp_path, weights)
    recorded, usual = DecodingContext(there, MASK), DecodingContext(there, MASK)
    usual.step = None
    ids = np.random.default_rng(1).integers(3, 41, size=(2, tokens))
    for total in range(7, tokens + 1):
        ours, theirs = (to_numpy(context.read_on_device(ids[:, :total])) for context in (recorded, usual))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert recorded.step is not None
    assert recorded.step.refused is None
    assert recorded.step.recordings == recordings


@on_cuda
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["small-float32", "small-float16"])
def test_rope_and_the_cache_in_one_kernel(dtype: Any) -> None:
    from tests.backends.cupy.test_rope import one_by_one, step

    ours, theirs, kernels = KVCache(1), KVCache(1), CupyKernels()
    rounding = 2.0**-10 if dtype is np.float16 else 2e-6
    for seed, T in enumerate((5, 1, 3)):
        arguments = step(seed, T, dtype, 2)
        got = kernels.rope_append(ours, 0, *(CUDA.asarray(x) for x in arguments))
        for one, exact in zip(got, one_by_one(theirs, *arguments, False), strict=True):
            np.testing.assert_allclose(CUDA.asnumpy(one), exact, rtol=rounding, atol=rounding)


@on_cuda
@pytest.mark.parametrize("size", [pytest.param(97, id="small"), pytest.param(32011, id="usual")])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_choose_kernel(size: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    logits, uniforms = (3 * rng.normal(size=(5, size))).astype(dtype), rng.random(5)
    logits[1, 3:9] = logits[1].max() + 1  # the most likely six times
    there, choose = CUDA.asarray(logits), CupyKernels().choose
    np.testing.assert_array_equal(CUDA.asnumpy(choose(there)), logits.argmax(axis=1))
    warpers = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01}
    drawn = choose(there, CUDA.asarray(uniforms), **warpers)
    np.testing.assert_array_equal(CUDA.asnumpy(drawn), on_the_host(logits.astype(np.float32), uniforms, **warpers))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sizes", ["small", "usual"])
@pytest.mark.parametrize("name", [] if CUDA is None else KERNELS)
def test_kernel_equals_its_layer(name: str, sizes: str, dtype: Any) -> None:
    if dtype is BFLOAT16 and int(CUDA.__version__.split(".")[0]) < 14:
        pytest.skip("this CuPy has no bfloat16")
    served = [hold(name, args, kwargs, dtype, real=True) for args, kwargs in CASES[name](sizes == "usual")]
    assert any(served)
