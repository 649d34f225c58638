"""What Python shows of public objects: representations, help, errors that name the fix, warnings at a line."""

from __future__ import annotations

import pydoc
import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.generation.options import Options
from refdiff.messages import warn
from tests.model.models import small_model


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)


def test_an_output_has_names_and_shapes(model: Any) -> None:
    assert repr(model([[0, 5, 7]], output_attentions=True)) == (
        "ModelOutput(logits=(1, 3, 259) float32, cache=KVCache of 3 tokens, attentions=2 × (1, 4, 3, 3) float32, "
        "differential_attentions=2 × (1, 2, 3, 3) float32, lambdas=2 × () float32)"
    )


def test_the_help_of_generate_lists_every_option_with_its_default(model: Any) -> None:
    said = " ".join((model.generate.__doc__ or "").split())
    for option in fields(Options):
        assert f" {option.name}={option.default!r}" in said, option.name


SIGNATURE = re.compile(r"[ |]*(\w+ = )?\w+\(.*\)( -> .*| method of .*| from .*)?")
"""What Python 3.11 prints in one line, however long it is."""


@pytest.mark.parametrize("name", [name for name in refdiff.__all__ if callable(getattr(refdiff, name))])
def test_help_is_within_100_columns(name: str) -> None:
    lines = pydoc.plain(pydoc.render_doc(getattr(refdiff, name), "Help on %s:")).splitlines()
    assert len(lines) > 3
    assert [line for line in lines if len(line) > 100 and not SIGNATURE.fullmatch(line)] == []


@pytest.mark.parametrize("call", ["generate", "__call__"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Once", 'got a text, expected token ids; call tokenizer(text, return_tensors="np")["input_ids"]'),
        (["Once", "upon"], "input_ids: got a text, expected token ids"),
        ({"input_ids": [[1]]}, "input_ids: got dict, expected token ids; unpack it, as in {call}(**inputs)"),
    ],
)
def test_a_text_or_a_dict_in_place_of_ids_says_the_fix(given: Any, message: str, call: str, model: Any) -> None:
    typed = "model" if call == "__call__" else f"model.{call}"
    with pytest.raises(TypeError, match=re.escape(message.format(call=typed))):
        getattr(model, call)(given)


def test_names_of_transformers_for_loading(tiny_checkpoint: Path) -> None:
    load = refdiff.DiffLlamaForCausalLM.from_pretrained
    assert load(tiny_checkpoint, torch_dtype="float64").dtype == "float64"
    assert load(tiny_checkpoint, torch_dtype=np.float64).dtype == "float64"

    class TorchType:
        """What `torch.float64` looks like."""

        def __repr__(self) -> str:
            return "torch.float64"

    for name in ("dtype", "torch_dtype"):
        assert load(tiny_checkpoint, **{name: TorchType()}).dtype == "float64"
    with pytest.raises(ValueError, match=r"dtype, torch_dtype: got both, expected one of them"):
        load(tiny_checkpoint, dtype="float32", torch_dtype="float64")
    neutral = {"device_map": "auto", "low_cpu_mem_usage": True, "use_safetensors": True, "attn_implementation": "sdpa"}
    neutral["return_dict"] = True
    assert load(tiny_checkpoint, **neutral).eval().to("cpu").dtype == "float32"
    neutral["variant"] = None
    assert load(tiny_checkpoint, output_hidden_states=True, output_attentions=False, **neutral)([[1]]).hidden_states
    for wrong, message in {
        "use_safetensors": "got 'x', expected None or True; leave it out",
        "device_map": "got 'x', expected None or 'auto' or 'cpu'; one device holds",
        "ignore_mismatched_sizes": "got 'x', expected None or False; correct num_labels",
        "variant": "got 'x', expected one of hf, paper, v2, plain, how attention is built; dtype gives",
    }.items():
        with pytest.raises(ValueError, match=f"^{wrong}: {message}"):
            load(tiny_checkpoint, **{wrong: "x"})
    for cls in (refdiff.DiffLlamaForCausalLM, refdiff.DiffLlamaConfig, refdiff.Tokenizer):
        cls.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    refdiff.pipeline("text-generation", model=tiny_checkpoint, trust_remote_code=True)


@pytest.mark.parametrize("cls", [refdiff.DiffLlamaForCausalLM, refdiff.DiffLlamaConfig, refdiff.Tokenizer])
def test_loading_says_which_arguments_it_takes(cls: Any, tiny_checkpoint: Path) -> None:
    for name, hint in {"quantization_config": "; leave it out", "cachedir": "; did you mean cache_dir?"}.items():
        said = f"from_pretrained: got an unexpected argument '{name}', expected any of .*{re.escape(hint)}$"
        with pytest.raises(TypeError, match=said) as error:
            cls.from_pretrained(tiny_checkpoint, **{name: "x"})
        assert "revision, cache_dir, local_files_only" in str(error.value)


def test_a_warning_points_at_the_line_that_calls_the_package(model: Any) -> None:
    with pytest.warns(UserWarning, match="said") as seen:
        warn("said")
    assert seen[0].filename == __file__
    short = small_model(max_position_embeddings=4)
    ids = [[1, 2, 3, 4, 5]]
    for call in (short, lambda x: short.generate(x, max_new_tokens=1), lambda x: short.loss_and_grad(x, labels=x)):
        short.warned_of_length = False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(ids)
        assert [w.filename for w in caught] == [__file__], call
