"""Torch in one line: modules as kernels, and whole models with a mistake in one layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

import refdiff
from refdiff import oracle
from refdiff.oracle import Case, Divergence, Recipe, Spec, cases
from refdiff.oracle.submission import judge_file
from tests.parity import attention_modules
from tests.parity.real_kernels import timm_module

SPEC = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=8, layer=2)
TIMM = Spec.preset("timm", query_heads=8, key_heads=8, head_dim=8, layer=1)
SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 6, "initializer_range": 0.25, "lambda_std_dev": 0.5, "pad_token_id": 0,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(1, 97, (2, 13))


def judged(kernel: Any, found: list[Case], recipe: Recipe | str) -> list[str]:
    """Judge outputs and gradients; the cases that were served."""
    served = []
    for case in found:
        got = kernel(case.inputs, dout=case.dout)
        if got is not NotImplemented:
            verdict = oracle.check(got, case.spec, case.inputs, recipe=recipe, dout=case.dout)
            assert verdict.status != "fail", f"{case}: {verdict}"
            served.append(case.name)
            assert {"dq", "dk", "dv"} <= set(got) or {"dx", "dq_proj.weight"} <= set(got)
    return served


def test_a_module_is_left_as_it_was_and_a_mistake_in_it_is_named() -> None:
    attention = timm_module(TIMM, fused=False)
    before = copy.deepcopy(attention.state_dict())
    found = cases("modules", 3, spec=TIMM)[3:] + cases("natural", 3, spec=TIMM)
    assert len(judged(oracle.torch.module(attention, TIMM), found, "float32")) >= 2
    assert all(torch.equal(x, before[name]) for name, x in attention.state_dict().items())
    assert isinstance(attention.qkv, torch.nn.Linear)
    case = cases("discriminating", 3, spec=TIMM)[1]
    attention.scale = 1.0
    wrong = oracle.torch.module(attention, TIMM)
    assert oracle.check(wrong, TIMM, case.inputs, recipe="float32").status == "fail"
    assert oracle.diagnose(wrong(case.inputs), TIMM, case.inputs, recipe="float32").status == "unique"


def test_a_module_with_names_of_its_own() -> None:
    mine = timm_module(TIMM, fused=True)
    mine.add_module("project", mine.qkv)
    del mine.qkv
    with pytest.raises(ValueError, match="project, expected q_proj, k_proj and v_proj"):
        oracle.torch.module(mine, TIMM)
    with pytest.raises(ValueError, match="names has q, but may have q_proj, k_proj, v_proj, qkv, o_proj"):
        oracle.torch.module(mine, TIMM, names={"q": "project"})
    with pytest.raises(ValueError, match=r"has no sinks, for sinks; give its own name with names=\{'sinks': ...\}"):
        oracle.torch.module(mine, TIMM.replace(sinks=True), names={"qkv": "project"})
    with pytest.raises(ValueError, match="the spec has lambda_logits, but the module has no lambda_proj; give its own"):
        oracle.torch.module(mine, TIMM.replace(lambda_form="sigmoid"), names={"qkv": "project"})
    kernel = oracle.torch.module(mine, TIMM, names={"qkv": "project"})
    declined = [
        case
        for p in ("layout", "serving")
        for case in cases(p, spec=TIMM)
        if {"cu_seqlens_q", "k_pages"} & set(case.inputs)
    ]
    declined += [*cases("natural", spec=TIMM)[:1], *cases("natural", spec=TIMM.replace(query_heads=16, key_heads=16))]
    declined += cases("natural", spec=TIMM, queries=5, keys=3)
    assert all(kernel(case.inputs, dout=case.dout) is NotImplemented for case in declined)
    assert kernel({**cases("natural", spec=TIMM)[1].inputs, "bias": np.zeros((1, 1, 17, 17))}) is NotImplemented


PLAIN: dict[str, Any] = {"query_heads": 8, "key_heads": 2, "head_dim": 8}
GATED = Spec.preset("attention", gate="sigmoid", **PLAIN)
QK_NORMED = Spec.preset("attention", qk_norm="rms", qk_norm_weight=True, rope="halves", **PLAIN)
SINKS = Spec.preset("attention", sinks=True, **PLAIN)
PER_HEAD = Spec.preset(
    "ms_v1", query_heads=8, key_heads=4, head_dim=8, layer=attention_modules.LAYER, rope="none", lambda_per_head=True,
    norm="layer", norm_weight=True, norm_per_head=True,
)  # fmt: skip
MODULES = [
    (attention_modules.WithSinks, SINKS, "sinks_by_key_head", "dsinks"),
    (attention_modules.WithGate, GATED, "silu_gate", "dgate_logits"),
    (attention_modules.WithLambdaPerHead, PER_HEAD, "lambda_of_head_0", "dlambda_q1"),
]
"""A module, its spec, a mistake by the oracle's name, and a gradient that others have not."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("of", "spec", "mistake", "gradient"), MODULES)
def test_features_of_newer_models(
    of: type[torch.nn.Module], spec: Spec, mistake: str, gradient: str, dtype: str
) -> None:
    found = [cases("natural", 5, spec=spec, dtype=dtype)[1], cases("discriminating", 5, spec=spec, dtype=dtype)[1]]
    found += cases("modules", 5, spec=spec, dtype=dtype)[4:5]  # a layer
    right, wrong = (oracle.torch.module(of(one).to(getattr(torch, dtype)), spec) for one in ("", mistake))
    assert len(judged(right, found, Recipe.eager(dtype))) == 3
    assert gradient in right(found[0].inputs, found[0].dout)
    for case in found:
        assert oracle.check(wrong, spec, case.inputs, recipe=Recipe.eager(dtype)).status == "fail"
    named = oracle.diagnose(wrong, spec, found[1].inputs, recipe=Recipe.eager(dtype))
    assert (named.status, named.name) == ("unique", mistake), str(named)


def test_an_output_projection_under_another_name() -> None:
    """It is not kept silently: the error names it, and with names= the module passes."""
    spec = Spec.preset("attention", **PLAIN)
    nested = attention_modules.WithOut()
    nested.out = torch.nn.Sequential(nested.out, torch.nn.Dropout(0.0))
    case = cases("natural", 5, spec=spec)[1]
    for module, path in ((attention_modules.WithOut(), "out"), (nested, "out.0")):
        with pytest.raises(
            ValueError, match=f"no o_proj or out_proj or proj, but the linear layers {path}, which nothing"
        ):
            oracle.torch.module(module, spec)
        kernel = oracle.torch.module(module, spec, names={"o_proj": path})
        assert oracle.check(kernel, spec, case.inputs, recipe="float32", dout=case.dout)


def test_a_gradient_that_does_not_flow_is_zero_and_judged() -> None:
    case = cases("discriminating", 5, spec=SINKS)[1]
    wrong = oracle.torch.module(attention_modules.WithSinks("detached"), SINKS)
    verdict = oracle.check(wrong, SINKS, case.inputs, recipe="float32", dout=case.dout)
    assert {name for name, of in verdict.tensors.items() if of.status == "fail"} == {"dsinks"}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_qwen3(implementation: str) -> None:
    """transformers' own module with a norm of q and k, in bfloat16: whole sequences, caches, padding, the layer."""
    config = transformers.Qwen3Config(
        hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=8, rms_norm_eps=QK_NORMED.qk_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": QK_NORMED.rope_theta},
        attn_implementation=implementation,
    )  # fmt: skip
    recipe = Recipe.eager("bfloat16") if implementation == "eager" else Recipe("bfloat16")
    found = [case for p in ("natural", "discriminating") for case in cases(p, 7, spec=QK_NORMED, dtype="bfloat16")]
    assert len(judged(oracle.torch.module(Qwen3Attention(config, 0), QK_NORMED), found, recipe)) >= 4


def test_a_presets_name_has_the_dimensions_of_the_inputs() -> None:
    kernel = oracle.torch.module(attention_modules.Grouped(), "attention")
    for case in cases("natural", 5, spec=Spec.preset("attention", **PLAIN))[1:]:
        assert oracle.check(kernel, "attention", case.inputs, recipe="float32", dout=case.dout)


def model_of(dtype: str = "float32", kind: str = "DiffLlama") -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(getattr(torch, dtype)).eval()


@pytest.fixture
def registered() -> Iterator[None]:
    """Attention functions that are wrong in layer 1, and in no other."""
    right = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def no_scale(part: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        wrong = {"scaling": 1.0} if part.layer_idx == 1 else {}
        return right(part, q, k, v, mask, **{**options, **wrong})

    def keys_swapped(part: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        return right(part, q, k.roll(2, 1) if part.layer_idx == 1 else k, v, mask, **options)

    def windowed(part: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        see = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        return right(part, q, k, v, see.triu(-4)[None, None] if part.layer_idx == 1 else mask, **options)

    ours = {"no_scale": no_scale, "keys_swapped": keys_swapped, "windowed": windowed}
    for name, function in ours.items():
        transformers.AttentionInterface.register(name, function)
        transformers.AttentionMaskInterface.register(name, transformers.masking_utils.sdpa_mask)
    yield
    for name in ours:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name)


def compared(model: Any, folder: Path, implementation: str = "eager") -> Divergence:
    model.save_pretrained(folder)
    ref = oracle.trace(refdiff.DiffLlamaForCausalLM.from_pretrained(folder, mmap=False), IDS)
    model.set_attn_implementation(implementation)
    with torch.no_grad(), oracle.hooks(model) as mine:
        model(torch.tensor(IDS))
    return oracle.first_divergence(mine, ref)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("kind", "point", "wrong"),
    [
        ("DiffLlama", "diff", "no_scale"),
        ("DiffLlama", "diff", "keys_swapped"),
        ("Llama", "scaled", "no_scale"),
        ("Llama", "scaled", "windowed"),
        ("Llama", None, "sdpa"),
    ],
)
def test_a_mistake_of_an_attention_function_in_one_layer_has_a_place(
    kind: str, point: str | None, wrong: str, tmp_path: Path
) -> None:
    found = compared(model_of(kind=kind), tmp_path, wrong)
    assert found.path == (point and f"model.layers.1.self_attn.{point}"), str(found)


def test_a_mistake_in_a_module_has_a_place(tmp_path: Path) -> None:
    model = model_of("bfloat16")
    model.model.layers[2].self_attn.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * 3)
    assert compared(model, tmp_path).path == "model.layers.2.self_attn.diff"
    model = model_of()
    model.model.layers[3].mlp.act_fn = torch.nn.GELU()
    assert compared(model, tmp_path).path == "model.layers.3.mlp.act_fn"


def test_a_kernel_of_as_many_keys_as_queries_is_judged(tmp_path: Path) -> None:
    """The plain kernel of the guide, which `is_causal` of torch restricts to such."""
    (tmp_path / "submitted.py").write_text(
        "import torch\n"
        "def kernel(inputs, dout=None):\n"
        "    if set(inputs) != {'q', 'k', 'v'} or inputs['q'].shape[2] != inputs['k'].shape[2]:\n"
        "        return NotImplemented\n"
        "    kind = getattr(torch, inputs['q'].dtype.name)\n"
        "    tensor = lambda x: torch.tensor(x.astype('float32')).to(kind)\n"
        "    q, k, v = (tensor(inputs[name]).requires_grad_() for name in 'qkv')\n"
        "    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)\n"
        "    grads = () if dout is None else torch.autograd.grad(out, (q, k, v), tensor(dout))\n"
        "    return {'out': out.detach(), **dict(zip(('dq', 'dk', 'dv'), grads))}\n"
    )
    report = judge_file(tmp_path / "submitted.py", "attention", recipe="bfloat16", profiles=["natural"])
    assert report, str(report)
    assert report.gradients
