"""Every variant as a whole model: unilm's files, the equalities that hold at every step, sizes, and what is saved."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refdiff
from refdiff.arrays import to_numpy
from refdiff.backends import ops_for, overlay
from refdiff.model.diffllama import Context, attention
from refdiff.model.variants import VARIANTS
from refdiff.model.weights import attention_shapes, count_parameters, nest, parameter_shapes
from refdiff.model.weights.names import stored_name
from tests.golden import unilm
from tests.layers.inputs import says
from tests.layers.places import Place
from tests.layers.test_composed import parts_of
from tests.model.models import CLASSES, VARIANT_NAMES, ids, small_config, small_model
from tests.model.variants import LAYERS
from tests.tolerances import EXACT, close

SAME = 1e-10
EACH = pytest.mark.parametrize("variant", VARIANT_NAMES)
KERNELS = pytest.mark.parametrize("kernels", ["fast", "reference"])


@pytest.mark.parametrize(
    ("variant", "kind", "file"),
    [
        ("paper", "v1", "multihead_flashdiff_1"),
        ("paper", "v1", "multihead_flashdiff_2"),
        ("v2", "v2", "multihead_flashdiffv2"),
    ],
)
@pytest.mark.parametrize("size", ["mha", "gqa2", "gqa3"])
def test_equals_the_files_of_unilm(variant: str, kind: str, file: str, size: str) -> None:
    case = unilm.case(f"{kind}-{size}")
    heads, D, maps = case.options["num_heads"], case.x.shape[2], 2 if kind == "v1" else 1
    sizes = {
        "head_dim": D // heads // 2 if kind == "v1" else case.options["head_dim"],
        "num_attention_heads": maps * heads,
        "num_key_value_heads": maps * case.key_heads,
    }
    # an ε that unilm's norm must not take
    config = small_config(variant=variant, hidden_size=D, rms_norm_eps=0.1, **sizes)
    p = nest({name.replace("out_proj", "o_proj"): array for name, array in case.weights.items()})
    shapes = {stored_name(f".self_attn.{name}", variant): shape for name, shape in attention_shapes(config).items()}
    expected = {name.removeprefix(".self_attn."): shape for name, shape in shapes.items()}  # a file's: unilm's names
    assert {name: a.shape for name, a in case.weights.items()} == expected
    ops = ops_for()
    frequencies = ops.rope_frequencies(config.rope_parameters, config.head_dim, 64, 7)
    cos, sin = ops.rope_cos_sin(np.arange(7)[None], *frequencies, np.float64)
    out = attention(p, case.x, case.options.get("depth", 0), Context(config, ops, cos, sin))
    close(out, case.outputs[file], unilm.SAME)


@EACH
def test_an_odd_number_of_key_heads_is_computed_or_refused(variant: str) -> None:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3}
    if VARIANTS[variant].even_key_heads:
        with pytest.raises(ValueError, match="num_key_value_heads: got 3, expected an even number"):
            small_config(variant=variant, **heads)
    else:
        small_model(variant=variant, **heads)(ids(3, 2, 5))


@EACH
@KERNELS
@settings(max_examples=settings().max_examples // 3)
@given(seed=st.integers(0, 9), cut=st.lists(st.integers(1, 10), max_size=3), static=st.booleans())
def test_cached_equals_uncached(variant: str, kernels: str, seed: int, cut: list[int], static: bool) -> None:
    model, tokens = small_model(kernels=kernels, seed=seed, variant=variant), ids(seed, 2, 11)
    cache = refdiff.KVCache(3, static=11 if static else None)
    edges = [0, *sorted(set(cut)), 11]
    logits = [model(tokens[:, a:b], cache=cache).logits for a, b in pairwise(edges)]
    close(np.concatenate(logits, axis=1), model(tokens, use_cache=False).logits, SAME)


@EACH
@KERNELS
def test_batch_equals_single_and_padded_equals_unpadded(variant: str, kernels: str) -> None:
    model, tokens = small_model(kernels=kernels, variant=variant), ids(1, 3, 6)
    together = model(tokens).logits
    mask = np.pad(np.ones((1, 6), dtype=int), ((0, 0), (3, 2)))
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    for row in range(3):
        one = tokens[row : row + 1]
        close(together[row], model(one).logits[0], SAME)
        padded = model(np.pad(one, ((0, 0), (3, 2))), attention_mask=mask, position_ids=positions).logits
        close(padded[0, 3:9], together[row], SAME)


@EACH
def test_on_a_device(away: Place, variant: str) -> None:
    here, there = small_model(variant=variant), small_model(variant=variant, **away.choice)
    tokens, mask = ids(6, 2, 7), np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    a, b = (m(tokens, attention_mask=mask, output_attentions=True) for m in (here, there))
    assert away.holds(b.logits)
    close(to_numpy(b.logits), a.logits, SAME)
    single = refdiff.DiffLlamaForCausalLM(small_config(variant=variant))(tokens, output_attentions=True)
    for name in ("attentions", "differential_attentions", "lambdas"):
        assert single[name][0].dtype == np.float32, name
        for x, y in zip(a[name], b[name], strict=True):
            assert away.holds(y)
            close(to_numpy(y), x, 1e-9)


@pytest.mark.parametrize("variant", ["hf", "paper"])
@given(seed=st.integers(0, 99), layers=st.integers(1, 7), size=st.sampled_from([2, 4, 6]), spread=st.floats(0.01, 0.7))
def test_lambda_of_every_layer_is_that_of_the_paper(
    variant: str, seed: int, layers: int, size: int, spread: float
) -> None:
    model = small_model(variant=variant, seed=seed, num_hidden_layers=layers, head_dim=size, lambda_std_dev=spread)
    lambdas = model(ids(seed, 1, 2), output_attentions=True).lambdas
    for layer, (p, lambda_) in enumerate(zip(model.params["model"]["layers"], lambdas, strict=True)):
        q1, k1, q2, k2 = (p["self_attn"][f"lambda_{name}"].tolist() for name in ("q1", "k1", "q2", "k2"))
        dots = [sum(a * b for a, b in zip(q, k, strict=True)) for q, k in ((q1, k1), (q2, k2))]
        close(lambda_, np.array(math.exp(dots[0]) - math.exp(dots[1]) + 0.8 - 0.6 * math.exp(-0.3 * layer)), SAME)


@pytest.mark.parametrize(
    ("variant", "replaced", "got"),
    [
        *(
            (variant, "diff_attention", "got 0 maps and 2 λ from 2 layers, expected 4 and 2")
            for variant in ("hf", "paper", "v2")
        ),
        ("hf", "diff_heads_hf", "got 0 maps and 2 λ from 2 layers, expected 4 and 2"),
        ("plain", "plain_heads", "got 0 maps and 0 λ from 2 layers, expected 2 and 0"),
    ],
)
def test_maps_that_a_replaced_layer_keeps_to_itself_are_missed(variant: str, replaced: str, got: str) -> None:
    model = small_model(variant=variant, kernels="reference", num_hidden_layers=2)
    alone = lambda f: lambda *args, ops, **options: f(*args, **options)  # noqa: E731
    model.ops = overlay(model.ops, lambda name, f: alone(f) if name == replaced else f)
    where = "in your replacement of a layer"
    fix = f"{where} call attention_weights, and the function that computes λ, from the `ops` that it is given"
    with says(ValueError, f"output_attentions: {got}; {fix}, or leave output_attentions out"):
        model(ids(0, 1, 3), output_attentions=True)


@EACH
def test_maps_are_those_of_the_heads_that_a_mask_names(variant: str) -> None:
    """A mask of its own for each query head tells which map is whose."""
    model, tokens = small_model(variant=variant, num_hidden_layers=1, kernels="reference"), ids(7, 2, 5)
    heads = model.config.num_query_heads
    mask = (np.random.default_rng(0).random((2, heads, 5, 5)) < 0.8) & np.tri(5, dtype=bool) | np.eye(5, dtype=bool)
    out = model(tokens, attention_mask=mask, output_attentions=True)
    weights, difference, lambda_ = out.attentions[0], out.differential_attentions[0], out.lambdas[0]
    assert weights.shape == mask.shape
    assert np.all((weights > 0) == mask)
    close(weights.sum(axis=-1), np.ones(mask.shape[:3]), SAME)
    first, second = {
        "halves": (slice(0, heads // 2), slice(heads // 2, None)),
        "interleaved": (slice(0, None, 2), slice(1, None, 2)),
        None: (slice(None), slice(None)),
    }[VARIANTS[variant].pairing]
    close(difference, weights[:, first] - lambda_ * weights[:, second], SAME)


@EACH
def test_every_layer_goes_through_ops(variant: str) -> None:
    model, calls = small_model(variant=variant), Counter[str]()

    def count(name: str, function: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*args, **options)

        return counted

    model.ops = overlay(model.ops, count)
    model(ids(8, 1, 3))
    own = [*LAYERS[variant], *(part for name in LAYERS[variant] for part in parts_of(name))]
    of_variants = {name for names in LAYERS.values() for name in names}
    assert {name: calls[name] for name in of_variants} == {name: 3 * own.count(name) for name in of_variants}
    each = {"rms_norm": 2, "diff_attention": 0, "linear": 7, "swiglu": 1, "rope": 2}  # and once for what has it as part
    each = {name: count + own.count(name) for name, count in each.items()}
    ends = {"rms_norm": 1, "linear": 1}  # the last norm, and the logits
    assert {name: calls[name] for name in each} == {name: 3 * n + ends.get(name, 0) for name, n in each.items()}


@EACH
def test_saved_and_loaded_is_the_same(variant: str, tmp_path: Path) -> None:
    kind = refdiff.DiffLlamaForCausalLM
    model = small_model(kind, variant=variant, attention_bias=True)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "variant" not in saved
    assert saved["architectures"] == [kind.__name__.removeprefix("Diff") if variant == "plain" else kind.__name__]
    again = kind.from_pretrained(tmp_path)
    assert again.config.variant == variant
    close(again(ids(2, 1, 5)).logits, model(ids(2, 1, 5)).logits, EXACT)


@given(pairs=st.integers(1, 4), keys=st.integers(1, 3), size=st.sampled_from([2, 4, 6]), layers=st.integers(1, 3))
def test_parameters_are_those_of_a_llama_but_for_lambda(pairs: int, keys: int, size: int, layers: int) -> None:
    heads = {"num_attention_heads": 2 * pairs * keys, "num_key_value_heads": 2 * keys, "head_dim": size}
    sizes = {"hidden_size": 2 * pairs * keys * size, "num_hidden_layers": layers, **heads}
    count = {
        variant: count_parameters(
            parameter_shapes(small_config(variant=variant, **sizes), CLASSES[1].__name__).values()
        )
        for variant in VARIANT_NAMES
    }
    assert count["hf"] - count["plain"] == layers * 4 * size
    assert count["paper"] - count["plain"] == layers * (4 * size + 2 * size)
    # v2 pays for the second queries, and λ
    h, D = heads["num_attention_heads"], sizes["hidden_size"]
    assert count["v2"] - count["plain"] == layers * (h * size + h) * D


class Counted(np.ndarray):
    """An array that counts the multiplications of the matrix products it takes part in."""

    products = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        if "out" in options:
            options["out"] = tuple(x.view(np.ndarray) for x in options["out"])
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counted.products += result.size * plain[0].shape[-1]
        return result.view(Counted) if isinstance(result, np.ndarray) else result

    def __array_function__(self, *call: Any) -> Any:
        result = super().__array_function__(*call)
        return result.view(Counted) if isinstance(result, np.ndarray) else result


def products(variant: str, T: int, **sizes: Any) -> int:
    """The multiplications of one layer of attention, from hidden states to hidden states."""
    model = refdiff.DiffLlamaModel.from_config(
        small_config(variant=variant, **sizes), kernels="reference", dtype="float64"
    )
    p = {name: {key: x.view(Counted) for key, x in value.items()} if isinstance(value, dict) else value.view(Counted)
         for name, value in model.params["layers"][0]["self_attn"].items()}  # fmt: skip
    cos, sin = (np.ones((1, 1, T, model.config.head_dim // 2)).view(Counted) for _ in range(2))
    Counted.products = 0
    x = np.ones((1, T, model.config.hidden_size)).view(Counted)
    attention(p, x, 0, Context(model.config, model.ops, cos, sin))
    return Counted.products


@given(pairs=st.integers(1, 3), keys=st.integers(1, 2), size=st.sampled_from([2, 4]), T=st.integers(1, 7))
def test_multiplications_are_those_of_a_llama(pairs: int, keys: int, size: int, T: int) -> None:
    heads = {"num_attention_heads": 2 * pairs * keys, "num_key_value_heads": 2 * keys, "head_dim": size}
    D = 2 * pairs * keys * size
    plain = products("plain", T, hidden_size=D, **heads)
    # q, k, v and o; scores and weighted values of every head
    key_width = heads["num_key_value_heads"] * size
    assert plain == T * D * (2 * D + 2 * key_width) + 2 * heads["num_attention_heads"] * T * T * size
    assert products("hf", T, hidden_size=D, **heads) == plain
    assert products("paper", T, hidden_size=D, **heads) == plain
    # v2: as many weighted values, twice the queries and their scores, and λ
    more = T * D * D + heads["num_attention_heads"] * (T * T * size + T * D)
    assert products("v2", T, hidden_size=D, **heads) == plain + more
