"""Names of transformers that refdiff does not have: the error says what serves instead, others stay Python's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import refdiff
from refdiff import refused


def owner(kind: str) -> Any:
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
            assert not hasattr(one, name)


@pytest.mark.parametrize("kind", ["MODEL", "CONFIG", "TOKENIZER"])
@pytest.mark.parametrize("name", ["no_such_name", "_private", "__array__"])
def test_other_names_have_the_error_of_python(kind: str, name: str) -> None:
    one = owner(kind)
    with pytest.raises(AttributeError, match=f"^'{type(one).__name__}' object has no attribute '{name}'$") as error:
        getattr(one, name)
    assert error.value.obj is one
    assert error.value.name == name


@pytest.mark.parametrize("kind", ["MODEL", "CONFIG"])
def test_copies_and_pickles(kind: str) -> None:
    one = owner(kind)
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(other) is type(one)
        assert repr(other) == repr(one)
