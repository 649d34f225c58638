"""Names of transformers that refdiff does not have: the error says what serves instead, others stay Python's own."""

from __future__ import annotations

import abc
import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import refdiff
from refdiff import refused


def owner(kind: str) -> Any:
    if kind == "GenerationConfig":
        return refdiff.GenerationConfig()
    if kind == "TOKENIZER":
        return refdiff.Tokenizer.from_pretrained("bundled")
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    return model if kind == "MODEL" else model.config


@pytest.mark.parametrize("kind", ["MODEL", "CONFIG", "TOKENIZER"])
def test_each_name_has_its_sentence(kind: str) -> None:
    one, table = owner(kind), getattr(refused, kind)
    named = [name for names in table.values() for name in names.split()]
    assert len(named) == len(set(named)) > 20
    for sentence, names in table.items():
        for name in names.split():
            with pytest.raises(AttributeError) as error:
                getattr(one, name)
            fix = f"{type(one).__name__}.{name}: got a name of transformers, expected one of refdiff; {sentence}"
            assert str(error.value) == fix
            with pytest.raises(AttributeError, match="got a name of transformers"):  # to set it would change nothing
                setattr(one, name, True)
            assert not hasattr(one, name)


NEAR = {
    "MODEL": ("generat", "generate"),
    "CONFIG": ("hidden_sise", "hidden_size"),
    "TOKENIZER": ("batch_decod", "batch_decode"),
    "Encoded": ("input_id", "input_ids"),
    "GenerationConfig": ("updat", "update"),
}


@pytest.mark.parametrize("kind", NEAR)
def test_other_names_have_the_error_of_python_with_the_nearest_name(kind: str) -> None:
    one = OBJECTS[kind]() if kind in OBJECTS else owner(kind)
    known = f"'{type(one).__name__}' object has no attribute"
    near, meant = NEAR[kind]
    for name in ("zzzz", "_private", "__array__", near):
        hint = f"; did you mean '{meant}'?" if name == near else ""
        with pytest.raises(AttributeError, match=f"^{re.escape(f'{known} {name!r}{hint}')}$") as error:
            getattr(one, name)
        assert error.value.name == name
        assert not hasattr(one, name)


@pytest.mark.parametrize("kind", ["MODEL", "CONFIG"])
def test_copies_and_pickles(kind: str) -> None:
    one = owner(kind)
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(other) is type(one)
        assert repr(other) == repr(one)


def test_names_of_the_top_level() -> None:
    named = [name for names in refused.TOP_LEVEL.values() for name in names.split()]
    assert len(named) == len(set(named)) > 20
    for sentence, names in refused.TOP_LEVEL.items():
        for name in names.replace("*", "_xy_").split():
            fix = re.escape(f"refdiff.{name}: got a name of transformers, expected one of refdiff; {sentence}")
            with pytest.raises(AttributeError, match=rf"^{fix}(; did you mean 'DiffLlama\w+'\?)?$"):
                getattr(refdiff, name)
            with pytest.raises(ImportError, match=f"^{fix}"):
                exec(f"from refdiff import {name}")
            assert not hasattr(refdiff, name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("no_such_name", ""), ("AutoTokeniser", "AutoTokenizer"), ("set_sed", "set_seed"), ("Tokenzier", "Tokenizer"),
        ("AutoModelForCausualLM", "AutoModelForCausalLM"), ("DifLlamaForCausalLM", "DiffLlamaForCausalLM"),
    ],
)  # fmt: skip
def test_mistyped_names_of_the_top_level(name: str, meant: str) -> None:
    fix = f"{name}.*; did you mean '{meant}'\\?$" if meant else f"^module 'refdiff' has no attribute '{name}'$"
    with pytest.raises(AttributeError, match=fix):
        getattr(refdiff, name)
    with pytest.raises(ImportError, match=fix):
        exec(f"from refdiff import {name}")


def test_modules_that_are_no_names_of_the_top_level_are_imported() -> None:
    run = "from refdiff import hub, messages, generation; import refdiff.backends; print(hub.__name__)"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert done.stdout == "refdiff.hub\n"


def test_a_subclass_may_be_abstract() -> None:
    class Scorer(refdiff.DiffLlamaForCausalLM, abc.ABC):
        @abc.abstractmethod
        def rank(self) -> list[int]:
            """Rank."""

    with pytest.raises(TypeError, match=r"abstract .*rank"):
        Scorer(refdiff.DiffLlamaConfig())
    with pytest.raises(AttributeError, match="from_pretraind'; did you mean 'from_pretrained'"):
        Scorer.from_pretraind  # noqa: B018


def test_auto_classes_are_the_classes_of_refdiff() -> None:
    assert (refdiff.AutoConfig, refdiff.AutoTokenizer) == (refdiff.DiffLlamaConfig, refdiff.Tokenizer)
    for head in ("", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"):
        assert getattr(refdiff, f"AutoModel{head}") is getattr(refdiff, f"DiffLlama{head or 'Model'}")


def test_an_auto_class_refuses_other_models_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    for kind in (refdiff.AutoConfig, refdiff.AutoModel, refdiff.AutoModelForCausalLM):
        with pytest.raises(refdiff.CheckpointError, match="model_type: got 'bert', expected one of diffllama, "):
            kind.from_pretrained(tmp_path)


def test_set_seed_decides_what_is_drawn() -> None:
    model, drawn = refdiff.AutoModelForCausalLM.from_pretrained("bundled"), []
    for seed in (7, 7, 8):
        refdiff.set_seed(seed)
        drawn.append((model.generate([[5, 6]], do_sample=True, max_new_tokens=12).tolist(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert drawn[1][0] != drawn[2][0]
    for wrong, error in ((-1, ValueError), (2**32, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="seed: got"):
            refdiff.set_seed(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", " ".join(refused.PIPELINE.values()).split())
def test_arguments_of_pipelines(name: str) -> None:
    refdiff.pipeline("text-generation", "bundled", use_fast=True, **{name: None})
    with pytest.raises(TypeError, match=f"text-generation: got '{name}', an argument of transformers' pipelines; .+"):
        refdiff.pipeline("text-generation", "bundled", **{name: 1})


def test_model_kwargs_are_a_dict() -> None:
    with pytest.raises(TypeError, match="model_kwargs: got int, expected a dict of options of from_pretrained"):
        refdiff.pipeline("text-generation", "bundled", model_kwargs=1)


def test_what_a_config_says_of_calls_holds_for_calls() -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    assert model([[1, 2]]).hidden_states is model([[1, 2]]).attentions is None
    model.config.output_hidden_states = model.config.output_attentions = model.config.return_dict = True
    out = model([[1, 2]])
    assert len(out.hidden_states) == len(out.attentions) + 1
    assert model([[1, 2]], output_hidden_states=False, output_attentions=False).hidden_states is None
    with pytest.raises(ValueError, match="return_dict: got False for the config, expected True; give False to the"):
        model.config.return_dict = False


METHODS = {
    "save_pretrained": (("MODEL", "save_pretrained"), ("CONFIG", "save_pretrained"), ("TOKENIZER", "save_pretrained")),
    "parameters": (("MODEL", "parameters"), ("MODEL", "named_parameters"), ("MODEL", "state_dict")),
    "resize_token_embeddings": (("MODEL", "resize_token_embeddings"),),
    "push_to_hub": (("MODEL", "push_to_hub"),),
    "to_json_string": (("GenerationConfig", "to_json_string"),),
    "decode": (("TOKENIZER", "decode"), ("TOKENIZER", "batch_decode")),
    "config": (("CONFIG", "from_pretrained"),),
    "tokenizer": (("TOKENIZER", "from_pretrained"),),
    "__call__": (("TOKENIZER", "__call__"), ("TOKENIZER", "encode"), ("TOKENIZER", "tokenize")),
    "pad": (("TOKENIZER", "pad"),),
}


@pytest.mark.parametrize("kind", METHODS)
def test_arguments_that_change_nothing_are_taken_and_others_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, tuple[Any, ...]] = {
        "save_pretrained": (tmp_path,), "decode": ([1, 2],), "config": ("bundled",), "tokenizer": ("bundled",),
        "__call__": ("a",), "pad": ({"input_ids": [1]}, False), "push_to_hub": ("user/name",),
    }  # fmt: skip
    monkeypatch.setattr("huggingface_hub.HfApi", MagicMock())
    for subject, method in METHODS[kind]:
        call = getattr(owner(subject), method)
        for name, (sentence, *values) in refused.NEUTRAL[kind].items():
            for value in values:
                call(*given.get(kind, ()), **{name: value})
            with pytest.raises(
                ValueError, match=re.escape(f"{name}: got 'x', expected ") + f".*; {re.escape(sentence)}$"
            ):
                call(*given.get(kind, ()), **{name: "x"})
        with pytest.raises(TypeError, match=r"\w+\.\w+: got an unexpected argument 'zzz', expected any of \w+, "):
            call(*given.get(kind, ()), zzz=1)


def test_a_mistyped_argument_is_answered_by_the_nearest_of_the_method() -> None:
    tokenizer = owner("TOKENIZER")
    for call, wrong, meant in ((tokenizer, "max_lenght", "max_length"), (tokenizer.pad, "paddin", "padding")):
        with pytest.raises(TypeError, match=rf"^Tokenizer\.\w+: got an .* '{wrong}', .*; did you mean {meant}\?$"):
            call("a", **{wrong: 1})
    with pytest.raises(ValueError, match=r"^text_target: got 'b', expected None; the labels of a decoder are its own"):
        tokenizer(text_target="b")
    with pytest.raises(TypeError, match=r"^text: got NoneType, expected a string"):
        tokenizer()
    with pytest.raises(TypeError, match=r"^tools: got function, expected dicts, such as transformers.utils"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tools=[lambda: 1], chat_template="x")


def test_arguments_that_are_accepted_with_any_value() -> None:
    refdiff.set_seed(3, deterministic=True)
    tokenizer, model = owner("TOKENIZER"), owner("MODEL")
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad(tokenizer(["a b", "c"], verbose=False), verbose=False)
    assert len(model.resize_token_embeddings(pad_to_multiple_of=7)) == model.config.vocab_size
    assert model.config.vocab_size % 7 == 0
    assert len(model.resize_token_embeddings(30, 8)) == 32
    with pytest.raises(ValueError, match="pad_to_multiple_of: got 0, expected an integer of at least 1"):
        model.resize_token_embeddings(30, 0)


OBJECTS: dict[str, Callable[[], Any]] = {
    "GenerationConfig": refdiff.GenerationConfig,
    "Encoded": lambda: owner("TOKENIZER")("a"),
    "Output": lambda: owner("MODEL")([[1]]),
    "KVCache": lambda: refdiff.KVCache(1),
    "Pipeline": lambda: refdiff.pipeline("text-generation", "bundled"),
    "BatchTextStreamer": lambda: refdiff.TextIteratorStreamer(owner("TOKENIZER")),
    "StoppingCriteria": lambda: refdiff.MaxLengthCriteria(3),
    "LogitsProcessor": lambda: refdiff.TopKLogitsWarper(3),  # type: ignore[attr-defined]
    "_Settings": refdiff.WatermarkingConfig,
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_names_of_other_objects(kind: str) -> None:
    one = OBJECTS[kind]()
    for sentence, names in refused.ATTRIBUTES[kind].items():
        for name in names.split():
            with pytest.raises(
                AttributeError, match=rf"\.{name}: got a name of transformers, .*; {re.escape(sentence)}$"
            ):
                getattr(one, name)
    assert not hasattr(one, "no_such_name")


def test_each_class_with_sentences_is_tested() -> None:
    assert refused.ATTRIBUTES.keys() == {*OBJECTS, "PreTrainedModel", "DiffLlamaConfig", "Tokenizer"}


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoTokenizer", "AutoModel", "AutoModelForCausalLM"])
def test_classes_answer_as_their_objects_do(kind: str) -> None:
    cls = getattr(refdiff, kind)
    for name in ("register", "push_to_hub" if kind == "AutoTokenizer" else "register_for_auto_class"):
        with pytest.raises(AttributeError, match=rf"^{cls.__name__}\.{name}: got a name of transformers, .*; .+"):
            getattr(cls, name)
    with pytest.raises(AttributeError, match="has no attribute 'from_pretraind'; did you mean 'from_pretrained'"):
        cls.from_pretraind  # noqa: B018
