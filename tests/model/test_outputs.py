"""The result object: by attribute, by name, by position."""

import numpy as np

from refdiff.model.outputs import ModelOutput


def test_results_by_attribute_name_and_position():
    out = ModelOutput(loss=1, logits=2, hidden_states=(3,))
    assert out.logits == out["logits"] == out[1] == 2
    assert list(out.keys()) == ["loss", "logits", "hidden_states"]
    assert out[:2] == (1, 2)
    assert out.to_tuple() == (1, 2, (3,))
    assert dict(out.items()) == {"loss": 1, "logits": 2, "hidden_states": (3,)}


def test_a_result_has_the_names_that_are_not_none():
    out = ModelOutput(logits=np.zeros((2, 3)), hidden_states=(np.ones(3),))
    assert "logits" in out
    assert "loss" not in out
    assert "losses" not in out
    assert list(out) == ["logits", "hidden_states"]
    assert len(out) == 2
    assert {**out}.keys() == {"logits", "hidden_states"}
    assert (len(ModelOutput()), list(ModelOutput())) == (0, [])


def test_a_result_shows_shapes_and_types():
    out = ModelOutput(logits=np.zeros((2, 3), np.float32))
    assert repr(out) == "ModelOutput(logits=(2, 3) float32)"


def test_every_result_of_transformers_is_an_item_in_the_order_of_the_class():
    names = [
        "loss", "logits", "start_logits", "end_logits", "last_hidden_state", "cache", "hidden_states", "attentions",
    ]  # fmt: skip
    more = ["differential_attentions", "lambdas"]
    out = ModelOutput(**{name: name.upper() for name in reversed(names + more)})
    assert list(out.keys()) == names
    assert [getattr(out, name) for name in names] == list(out.to_tuple()) == [name.upper() for name in names]
    assert [out[name] for name in more] == [getattr(out, name) for name in more] == [name.upper() for name in more]
    assert all(name in out and name in repr(out) for name in more)
    assert list(ModelOutput()) == []
    assert all(getattr(ModelOutput(), name) is None for name in names + more)
