"""Torch in one line: modules as kernels, and whole models with a mistake in one layer."""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from refdiff import oracle
from refdiff.oracle import Case, Recipe, Spec, cases
from refdiff.oracle.judge import judge_file
from tests.parity import attention_modules

SPEC = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=8, layer=2)
TIMM = Spec.preset("timm", query_heads=8, key_heads=8, head_dim=8, layer=1)
SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 6, "initializer_range": 0.25, "lambda_std_dev": 0.5, "pad_token_id": 0,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(1, 97, (2, 13))


def diffllama(implementation: str) -> DiffLlamaAttention:
    config = transformers.DiffLlamaConfig(
        hidden_size=64, num_attention_heads=8, num_key_value_heads=4, head_dim=8, rms_norm_eps=SPEC.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": SPEC.rope_theta}, attn_implementation=implementation,
    )  # fmt: skip
    return DiffLlamaAttention(config, SPEC.layer)


class Timm(torch.nn.Module):
    """timm's DiffAttention (timm/layers/diff_attention.py, 1.0.31), unfused, without its options."""

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(64, 192), torch.nn.Linear(64, 64)
        self.sub_norm = torch.nn.RMSNorm(16, eps=1e-5)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            setattr(self, name, torch.nn.Parameter(torch.randn(8)))
        self.lambda_init, self.scale = 0.8 - 0.6 * math.exp(-0.3 * TIMM.layer), scale

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=2)
        q, k = (y.reshape(B, N, 8, 8).transpose(1, 2) for y in (q, k))
        v = v.reshape(B, N, 4, 16).transpose(1, 2)
        scores = self.scale * q * 8**-0.5 @ k.transpose(-2, -1)
        weights = (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1).view(B, 4, 2, N, N)
        one, two = (torch.exp((getattr(self, f"lambda_q{i}") * getattr(self, f"lambda_k{i}")).sum()) for i in "12")
        out = (weights[:, :, 0] - (one - two + self.lambda_init) * weights[:, :, 1]) @ v
        out = self.sub_norm(out) * (1 - self.lambda_init)
        return self.proj(out.transpose(1, 2).reshape(B, N, C))


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_transformers_module(implementation: str, dtype: str) -> None:
    """Whole sequences, caches, padding and the whole layer; what has no cache or pages is declined."""
    attention = diffllama(implementation)
    before = copy.deepcopy(attention.state_dict())
    recipe = Recipe.of({"storage": dtype, "qk": dtype if implementation == "eager" else "float32"})
    found = [case for p in ("natural", "discriminating", "serving") for case in cases(p, 7, spec=SPEC, dtype=dtype)]
    served = judged(oracle.torch.module(attention, SPEC), found, recipe)
    names = {"natural-0", "natural-1", "discriminating-1", "discriminating-3", "serving-3"}
    assert names <= {"-".join(name.split("-")[:2]) for name in served}
    assert {name: x.tolist() for name, x in before.items()} == {
        n: x.tolist() for n, x in attention.state_dict().items()
    }
    assert isinstance(attention.q_proj, torch.nn.Linear)


UNCOMPILED = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:_compile flag on create_block_mask was:DeprecationWarning",
)
"""What torch says of itself and of transformers where flex attention runs."""


@UNCOMPILED
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_attention(dtype: str) -> None:
    """It masks nothing by itself; on a CPU it has outputs, of whole sequences, caches, padding and layers."""
    attention = diffllama("flex_attention")
    kernel = oracle.torch.module(attention, SPEC)
    found = [case for p in ("natural", "discriminating", "serving") for case in cases(p, 7, spec=SPEC, dtype=dtype)]
    served = [case for case in found if kernel(case.inputs) is not NotImplemented]
    names = {"natural-0", "natural-1", "discriminating-0", "discriminating-1", "discriminating-3", "serving-3"}
    assert names == {"-".join(case.name.split("-")[:2]) for case in served}
    for case in served:
        verdict = oracle.check(kernel, SPEC, case.inputs, recipe=dtype)
        assert verdict, f"{case}: {verdict}"
    attention.scaling = 1.0
    wrong = oracle.torch.module(attention, SPEC)
    assert oracle.check(wrong, SPEC, served[3].inputs, recipe=dtype).status == "fail"
    named = oracle.diagnose(wrong, SPEC, served[3].inputs, recipe=dtype)
    assert (named.status, named.name) == ("unique", "scores_not_scaled"), str(named)


def test_gradients_of_flex_attention_are_declined_on_a_cpu() -> None:
    case = cases("natural", 7, spec=SPEC)[1]
    kernel = oracle.torch.module(diffllama("flex_attention"), SPEC)
    assert kernel(case.inputs, dout=case.dout) is NotImplemented
    with pytest.raises(ValueError, match="no gradients: torch has none of flex attention on a CPU"):
        oracle.check(kernel, SPEC, case.inputs, recipe="float32", dout=case.dout)


def test_timms_module_and_a_mistake_in_it() -> None:
    found = cases("modules", 3, spec=TIMM)[3:] + cases("natural", 3, spec=TIMM)
    assert len(judged(oracle.torch.module(Timm(), TIMM), found, "float32")) >= 2
    case = cases("discriminating", 3, spec=TIMM)[1]
    wrong = oracle.torch.module(Timm(scale=8**0.5), TIMM)
    assert oracle.check(wrong, TIMM, case.inputs, recipe="float32").status == "fail"
    assert oracle.diagnose(wrong(case.inputs), TIMM, case.inputs, recipe="float32").status == "unique"


def test_a_module_with_names_of_its_own() -> None:
    mine = Timm()
    mine.add_module("project", mine.qkv)
    del mine.qkv
    with pytest.raises(ValueError, match="the module has proj, sub_norm, project, expected q_proj, k_proj and v_proj"):
        oracle.torch.module(mine, TIMM)
    assert oracle.torch.module(mine, TIMM, names={"qkv": "project"})({"k_pages": np.zeros(3)}) is NotImplemented


PLAIN: dict[str, Any] = {"query_heads": 8, "key_heads": 2, "head_dim": 8}
GATED = Spec.preset("attention", gate="sigmoid", **PLAIN)
QK_NORMED = Spec.preset("attention", qk_norm="rms", qk_norm_weight=True, rope="halves", **PLAIN)
SINKS = Spec.preset("attention", sinks=True, **PLAIN)
PER_HEAD = Spec.preset(
    "ms_v1", query_heads=8, key_heads=4, head_dim=8, layer=attention_modules.LAYER, rope="none", lambda_per_head=True,
    norm="layer", norm_weight=True, norm_per_head=True,
)  # fmt: skip
NORMS = {"q_norm": "norms.q", "k_norm": "norms.k"}
MODULES = [
    (attention_modules.WithSinks, SINKS, {}, "sinks_of_key_heads", "dsinks"),
    (attention_modules.WithGate, GATED, {}, "gate_of_silu", "dgate_logits"),
    (attention_modules.WithQKNorm, QK_NORMED, NORMS, "qk_norm_after_rope", "dq_norm_weight"),
    (attention_modules.WithLambdaPerHead, PER_HEAD, {}, "lambda_of_the_first_head", "dlambda_q1"),
]
"""A module, its spec, what it calls its parts, a mistake by the oracle's name, and a gradient that others have not."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("of", "spec", "names", "mistake", "gradient"), MODULES)
def test_what_newer_models_have(
    of: type[torch.nn.Module], spec: Spec, names: dict[str, str], mistake: str, gradient: str, dtype: str
) -> None:
    found = [cases("natural", 5, spec=spec, dtype=dtype)[1], cases("discriminating", 5, spec=spec, dtype=dtype)[1]]
    found += cases("modules", 5, spec=spec, dtype=dtype)[4:5]  # a layer
    right, wrong = (oracle.torch.module(of(one).to(getattr(torch, dtype)), spec, names=names) for one in ("", mistake))
    assert len(judged(right, found, Recipe.eager(dtype))) == 3
    assert gradient in right(found[0].inputs, found[0].dout)
    for case in found:
        assert oracle.check(wrong, spec, case.inputs, recipe=Recipe.eager(dtype)).status == "fail"
    named = oracle.diagnose(wrong, spec, found[1].inputs, recipe=Recipe.eager(dtype))
    assert (named.status, named.name) == ("unique", mistake), str(named)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bias_of_a_norm(dtype: str) -> None:
    spec = PER_HEAD.replace(norm_bias=True)
    kernel = oracle.torch.module(attention_modules.WithLambdaPerHead(), spec)
    own_size = cases("natural", 5, spec=spec, dtype=dtype, batch=5, queries=16, keys=16)[0]
    for case in (own_size, cases("discriminating", 5, spec=spec, dtype=dtype)[1]):
        verdict = oracle.check(kernel, spec, case.inputs, recipe=Recipe.eager(dtype), dout=case.dout)
        assert verdict, str(verdict)
        assert "dnorm_bias" in verdict.tensors


def test_an_output_projection_under_another_name() -> None:
    """It is not kept silently: the error names it, and with names= the module passes."""
    spec = Spec.preset("attention", **PLAIN)
    mine, nested = attention_modules.WithOut(), attention_modules.WithOut()
    nested.out = torch.nn.Sequential(nested.out, torch.nn.Dropout(0.0))
    for module, path in ((mine, "out"), (nested, "out.0")):
        message = (
            f"no o_proj or out_proj or proj, but {path}, which nothing replaces; say with names={{'o_proj': '{path}'}}"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            oracle.torch.module(module, spec)
    with pytest.raises(ValueError, match="the module has no to_o, for o_proj"):
        oracle.torch.module(mine, spec, names={"o_proj": "to_o"})
    case = cases("natural", 5, spec=spec)[1]
    for module, path in ((mine, "out"), (nested, "out.0")):
        kernel = oracle.torch.module(module, spec, names={"o_proj": path})
        assert oracle.check(kernel, spec, case.inputs, recipe="float32", dout=case.dout)


def test_what_is_declined_says_what_is_served() -> None:
    kernel = oracle.torch.module(diffllama("sdpa"), SPEC)
    with pytest.raises(
        ValueError, match="does not serve these inputs; it serves dense inputs and whole layers, without"
    ):
        oracle.check(kernel, SPEC, cases("serving", 7, spec=SPEC)[0].inputs, recipe="float32")


def test_a_gradient_that_does_not_flow_is_zero_and_judged() -> None:
    case = cases("discriminating", 5, spec=SINKS)[1]
    wrong = oracle.torch.module(attention_modules.WithSinks("detached"), SINKS)
    verdict = oracle.check(wrong, SINKS, case.inputs, recipe="float32", dout=case.dout)
    assert {name for name, of in verdict.tensors.items() if of.status == "fail"} == {"dsinks"}


def test_a_buffer_takes_the_place_of_a_parameter_and_sizes_must_agree() -> None:
    case = cases("discriminating", 5, spec=SINKS)[1]
    attention = attention_modules.WithSinks()
    with_parameter = oracle.torch.module(attention, SINKS)(case.inputs)
    del attention.sinks
    attention.register_buffer("sinks", torch.zeros(1, 8, 1))
    assert torch.equal(oracle.torch.module(attention, SINKS)(case.inputs), with_parameter)
    attention.register_buffer("sinks", torch.zeros(2))
    with pytest.raises(ValueError, match=r"sinks has shape \(8,\), and the module's sinks \(2,\): they must be"):
        oracle.torch.module(attention, SINKS)(case.inputs)


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


def model_of(dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    return transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**SIZES)).to(getattr(torch, dtype)).eval()


def llama_of(dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    sizes = {name: size for name, size in SIZES.items() if name != "lambda_std_dev"}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(getattr(torch, dtype)).eval()


@pytest.fixture
def registered() -> Iterator[None]:
    """Attention functions that are wrong in layer 1, and in no other."""
    right = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def no_scale(part: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        wrong = {"scaling": 1.0} if part.layer_idx == 1 else {}
        return right(part, q, k, v, mask, **{**options, **wrong})

    def keys_crossed(part: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        return right(part, q, k.roll(2, 1) if part.layer_idx == 1 else k, v, mask, **options)

    def windowed(part: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        see = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        return right(part, q, k, v, see.triu(-4)[None, None] if part.layer_idx == 1 else mask, **options)

    ours = {"no_scale": no_scale, "keys_crossed": keys_crossed, "windowed": windowed}
    for name, function in ours.items():
        transformers.AttentionInterface.register(name, function)
        transformers.AttentionMaskInterface.register(name, transformers.masking_utils.sdpa_mask)
    yield
    for name in ours:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name)


@UNCOMPILED
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_a_right_model(implementation: str, dtype: str) -> None:
    mask = np.ones_like(IDS)
    mask[1, :3] = 0
    model = model_of(dtype)
    before = model.config._attn_implementation
    for extra in ({}, {"attention_mask": mask}):
        report = oracle.torch.model(model, torch.tensor(IDS), attn_implementation=implementation, **extra)
        assert report, str(report)
        equal = {stage.path for stage in report.divergence.stages if stage.status == "equal"}
        inside = ("q_proj", "q_rope", "k_rope", "attn1", "attn2", "diff", "scaled")
        assert {f"model.layers.{n}.self_attn.{point}" for n in range(4) for point in inside} <= equal
    assert model.config._attn_implementation == before


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("wrong", "point"), [("no_scale", "attn1"), ("keys_crossed", "attn1")])
def test_a_mistake_of_an_attention_function_in_one_layer_has_a_name(wrong: str, point: str) -> None:
    report = oracle.torch.model(model_of(), IDS[:1], attn_implementation=wrong)
    assert not report
    assert (report.layer, str(report.divergence.path)) == (1, f"model.layers.1.self_attn.{point}")
    assert report.diagnosis.status == "unique", str(report)
    assert str(report).startswith(f"fail: layer 1, point {point}\ndiagnosis: unique: ")


@UNCOMPILED
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_a_right_llama(implementation: str, dtype: str) -> None:
    mask = np.ones_like(IDS)
    mask[1, :3] = 0
    for extra in ({}, {"attention_mask": mask}):
        report = oracle.torch.model(llama_of(dtype), IDS, attn_implementation=implementation, **extra)
        assert report, str(report)
        equal = {stage.path for stage in report.divergence.stages if stage.status == "equal"}
        inside = ("q_proj", "q_rope", "k_rope", "attn", "scaled")
        assert {f"model.layers.{n}.self_attn.{point}" for n in range(4) for point in inside} <= equal


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("wrong", "status", "name"),
    [("no_scale", "unique", "scores_not_scaled"), ("windowed", "none fits", "a query sees 5 keys, itself among them")],
)
def test_a_mistake_in_one_layer_of_a_llama(wrong: str, status: str, name: str) -> None:
    report = oracle.torch.model(llama_of(), IDS[:1], attn_implementation=wrong)
    assert not report
    assert (report.layer, str(report.divergence.path)) == (1, "model.layers.1.self_attn.attn")
    assert report.diagnosis.status == status, str(report)
    assert name in str(report.diagnosis), str(report)


def test_a_mistake_in_the_module_has_a_name() -> None:
    model = model_of("bfloat16")
    model.model.layers[2].self_attn.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * 3)
    report = oracle.torch.model(model, IDS)
    assert (report.layer, report.divergence.path) == (2, "model.layers.2.self_attn.diff")
    assert report.diagnosis.status == "unique", str(report)


def test_a_mistake_outside_of_attention_has_a_place() -> None:
    model = model_of()
    model.model.layers[3].mlp.act_fn = torch.nn.GELU()
    report = oracle.torch.model(model, IDS[0].tolist())
    assert (report.layer, report.diagnosis) == (3, None)
    assert str(report).startswith("fail: layer 3, point act_fn\n")


def test_what_is_no_model_or_prompt() -> None:
    with pytest.raises(ValueError, match="got a text, expected ids"):
        oracle.torch.model(model_of(), "Once upon a time")
    with pytest.raises(ValueError, match="the model is a Timm, expected a DiffLlama or Llama of transformers"):
        oracle.torch.model(Timm(), IDS)


@pytest.mark.parametrize("recipe", ["float32", "bfloat16"])
def test_a_submitted_kernel_in_torch_is_judged(recipe: str, tmp_path: Path) -> None:
    """Its tensors come out of its process bit for bit, and importing torch there needs nothing that is refused."""
    honest = Path(__file__).parents[1] / "oracle" / "judge" / "kernels" / "honest.py"
    shutil.copy(honest, tmp_path)
    (tmp_path / "submitted.py").write_text(
        "import honest\n"
        "import torch\n"
        "def kernel(spec, inputs):\n"
        "    kind = getattr(torch, inputs['q'].dtype.name)\n"
        "    out = honest.kernel(spec, inputs)\n"
        "    return torch.tensor(out.astype('float32')).to(kind), None\n"
        "def wrong(spec, inputs):\n"
        "    return -kernel(spec, inputs)[0]\n"
    )
    for function, status in (("kernel", "pass"), ("wrong", "fail")):
        given = {"recipe": recipe, "profiles": ["natural"], "function": function}
        report = judge_file(tmp_path / "submitted.py", SPEC, **given)
        assert report.status == status, str(report)
        assert not report.reasons


@pytest.mark.parametrize(("recipe", "profile"), [("bfloat16", "modules"), ("float32", "natural")])
def test_a_kernel_of_as_many_keys_as_queries_is_judged(recipe: str, profile: str, tmp_path: Path) -> None:
    """The plain kernel of the guide, which `is_causal` of torch restricts to such, in either type."""
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
    report = judge_file(tmp_path / "submitted.py", "attention", recipe=recipe, profiles=[profile])
    assert report, str(report)
    assert report.gradients
