"""The guide about transformers' names: complete, and each of its statements is what refdiff does."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers

import refdiff
from refdiff import refused
from tests.parity import compatibility
from tests.parity.compatibility import ROWS

LEAST = {"config": 70, "models": 140, "generate": 80, "tokenizer": 60, "pipeline": 15, "others": 200}


@pytest.mark.parametrize("subject", ROWS)
def test_every_name_is_served_or_refused_with_what_serves_instead(subject: str) -> None:
    rows = ROWS[subject]()
    assert len(rows) >= LEAST[subject]
    assert {row.status for row in rows} >= {"same", "refused"}
    assert [row.name for row in rows if row.status == "absent"] == []


@pytest.mark.parametrize(("subject", "table"), [("config", "CONFIG"), ("models", "MODEL"), ("tokenizer", "TOKENIZER")])
def test_no_sentence_is_about_a_name_that_transformers_does_not_have(subject: str, table: str) -> None:
    refused_here = {row.name for row in ROWS[subject]() if row.status != "same"}
    assert {name for names in getattr(refused, table).values() for name in names.split()} == refused_here


@pytest.mark.parametrize(
    ("theirs", "ours", "kind"),
    [
        (transformers.DiffLlamaModel.save_pretrained, refdiff.DiffLlamaModel.save_pretrained, "save_pretrained"),
        (transformers.DiffLlamaConfig.save_pretrained, refdiff.DiffLlamaConfig.save_pretrained, "save_pretrained"),
        (transformers.PreTrainedTokenizerFast.save_pretrained, refdiff.Tokenizer.save_pretrained, "save_pretrained"),
        (transformers.DiffLlamaModel.named_parameters, refdiff.DiffLlamaModel.named_parameters, "parameters"),
        (transformers.DiffLlamaModel.state_dict, refdiff.DiffLlamaModel.state_dict, "parameters"),
    ],
)
def test_the_table_of_neutral_values_has_every_argument(theirs: Any, ours: Any, kind: str) -> None:
    named = inspect.signature(theirs).parameters
    wanted = {name for name, p in named.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert wanted <= {*inspect.signature(ours).parameters, *refused.NEUTRAL[kind]}


def test_no_sentence_is_about_a_name_that_transformers_class_does_not_have() -> None:
    refused_here = {row.name.rpartition(".")[2] for row in ROWS["others"]() if row.status != "same"}
    own = [kind for kind in refused.ATTRIBUTES if kind not in ("PreTrainedModel", "DiffLlamaConfig", "Tokenizer")]
    named = {name for kind in own for names in refused.ATTRIBUTES[kind].values() for name in names.split()}
    assert named - {name for names in refused.PIPELINE.values() for name in names.split()} <= refused_here


def test_keys_of_a_config_that_are_left_out() -> None:
    """They are no settings of the model: each has one value, or its default until it is set."""
    theirs, ours = transformers.DiffLlamaConfig(), refdiff.DiffLlamaConfig()
    fixed = {"chunk_size_feed_forward": 0, "is_encoder_decoder": False, "return_dict": True, "_name_or_path": ""}
    calls = {"output_attentions": False, "output_hidden_states": False}
    version = {"transformers_version": transformers.__version__}
    lost = {name: value for name, value in theirs.to_dict().items() if name not in ours.to_dict()}
    assert lost == fixed | calls | version
    for name in calls:
        setattr(ours, name, True)
        assert ours.to_dict()[name] is True


def test_the_guide_has_the_tables() -> None:
    assert compatibility.GUIDE.read_text(encoding="utf-8") == compatibility.page()


def test_an_error_without_what_serves_instead_is_noticed() -> None:
    class Bare:
        """Has nothing."""

    assert compatibility.attribute(Bare(), "to_json_string", Bare()).status == "absent"
    error = AttributeError("Bare.name: got a name of transformers; use `other`")
    assert compatibility.answered(Bare(), "name", error).status == "absent"


def test_every_auto_class_and_collator_is_there_or_refused_with_a_sentence() -> None:
    names = [name for name in dir(transformers) if name.startswith(("Auto", "DataCollator"))]
    names += ["AddedToken", "CompileConfig", "HfArgumentParser"]
    assert len(names) > 40
    rows = [compatibility.attribute(refdiff, name, transformers) for name in names]
    assert [row.name for row in rows if row.status == "absent"] == []


def test_a_generation_config_of_a_model_config() -> None:
    config = refdiff.DiffLlamaConfig(eos_token_id=[3, 4], bos_token_id=5)
    theirs = transformers.GenerationConfig.from_model_config(transformers.DiffLlamaConfig(**config.to_dict()))
    ours = refdiff.GenerationConfig.from_model_config(config)
    assert ours.to_dict() == {"eos_token_id": [3, 4], "bos_token_id": 5}
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.eos_token_id, ours.bos_token_id)
