"""Messages through templates: what the template sees, refusals, continued messages, where templates are found."""

from __future__ import annotations

import enum
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff import CheckpointError, Tokenizer
from refdiff.generation import chat_template
from refdiff.generation.chat_template import plain
from refdiff.generation.chat_template.sandbox import ChatTemplate
from tests.generation.tokenizer.test_tokenizer import words

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def show(template: str, chat: Any = CHAT, **options: Any) -> Any:
    return words().apply_chat_template(chat, chat_template=template, tokenize=False, **options)


def test_a_conversation_may_be_an_object_with_messages() -> None:
    one = SimpleNamespace(messages=CHAT)
    assert show("{{ messages[1].content }}", one) == "b"
    for kind in (SimpleNamespace, OrderedDict):
        assert show("{{ messages[1].content }}", [kind(**message) for message in CHAT]) == "b"
    of_pydantic = SimpleNamespace(model_dump=lambda: CHAT[1])
    assert show("{{ messages[0].content }}", [of_pydantic]) == "b"
    assert show("{{ messages[1].content }}", [one, one]) == ["b", "b"]


def test_variables_of_a_template() -> None:
    tools = [{"name": "t"}]
    assert show("{{ tools | length }}{{ documents }}{{ mood }}", tools=tools, mood="!") == "1None!"
    assert show("{{ add_generation_prompt }}", add_generation_prompt=True) == "True"
    assert show("{{ eos_token }}{{ sep_token is defined }}") == "</s>False"
    assert show("{{ eos_token }}", eos_token="x") == "x"
    assert show("{{ 'name' in messages[0] }}", [{"role": "user", "name": None, "content": ""}]) == "False"
    assert show("{{ messages[0].reasoning_content }}", [{"role": "x", "thinking": "hm"}]) == "hm"
    assert len(show("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert show("{% generation %}{% set x = 1 %}in{% endgeneration %}{{ x is defined }}") == "inFalse"


class Mood(enum.StrEnum):
    GOOD = "good"


def test_only_plain_data_reaches_the_template() -> None:
    value = {"a": Mood.GOOD, "b": np.int64(3), "c": np.zeros(2), "d": (1, None, True), "e": float("inf"), 5: object}
    assert plain(value) == {"a": "good", "b": 3, "c": "<ndarray>", "d": [1, None, True], "e": float("inf"), 5: "<type>"}
    assert type(plain(Mood.GOOD)) is str


def test_messages_are_not_changed() -> None:
    chat = [{"role": "assistant", "content": [{"type": "text", "text": "b"}], "thinking": "t"}]
    show("{{ messages[0].content[0].text }}", chat, continue_final_message=True)
    assert chat == [{"role": "assistant", "content": [{"type": "text", "text": "b"}], "thinking": "t"}]


def test_refusal_is_about_the_messages() -> None:
    with pytest.raises(ValueError, match=": the chat template refuses these messages: roles must alternate") as caught:
        show("{{ raise_exception('roles must alternate') }}")
    assert not isinstance(caught.value, CheckpointError)


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(CheckpointError, match="the chat template failed on these messages: it writes half a surrogate"):
        show("{{ messages[0].content }}", [{"role": "user", "content": "\ud800"}])


def test_an_endless_template_is_refused_with_the_cause() -> None:
    endless = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"
    with pytest.raises(CheckpointError, match="failed on these messages: it calls itself without end, or its values"):
        show(endless)


@pytest.mark.parametrize(
    ("content", "template", "expected"),
    [
        ("b", "{{ messages[-1].content }}<end>", "b"),
        ("b ", "{{ messages[-1].content }}<end>", "b "),
        ("b ", "{{ messages[-1].content | trim }}<end>", "b"),
        ([{"type": "image"}, {"type": "text", "text": "b"}], "{{ messages[-1].content[1].text }}<end>", "b"),
    ],
)
def test_continue_final_message(content: Any, template: str, expected: str) -> None:
    chat = [{"role": "assistant", "content": content}]
    assert show(template, chat, continue_final_message=True) == expected


def test_the_mask_of_what_the_assistant_wrote() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} {% else %}"
        "{% generation %}{{ m.content }} {% endgeneration %}c {% endif %}{% endfor %}"
    )
    options: dict[str, Any] = {"chat_template": template, "return_assistant_tokens_mask": True}
    assert words().apply_chat_template(CHAT * 2, **options)["assistant_masks"] == [0, 1, 0, 0, 1, 0]
    batch = words().apply_chat_template(
        [CHAT, CHAT[:1], CHAT * 2], padding=True, max_length=5, truncation=True, return_tensors="np",
        tokenizer_kwargs={"padding_side": "left"}, **options,
    )  # fmt: skip
    np.testing.assert_array_equal(batch["assistant_masks"], [[0, 0, 0, 1, 0], [0] * 5, [0, 1, 0, 0, 1]])
    with pytest.warns(UserWarning, match=r"got no {% generation %} block"):
        words().apply_chat_template(CHAT, **{**options, "chat_template": "a"})
    for wrong in ({"tokenize": False}, {"return_dict": False}, {"continue_final_message": True}):
        with pytest.raises(ValueError, match=r"return_assistant_tokens_mask: got True, expected"):
            words().apply_chat_template(CHAT, **options, **wrong)


def test_options_are_no_variables() -> None:
    with pytest.raises(ValueError, match="sanitize_control_tokens: got True, expected False"):
        show("{{ sanitize_control_tokens }}", sanitize_control_tokens=True)
    ids = words().apply_chat_template(CHAT, chat_template="a", tokenizer_kwargs={"return_length": True})
    assert ids["length"] == [1]


def test_a_message_without_role() -> None:
    with pytest.raises(ValueError, match="a message: got the fields 'content', expected \"role\" among them"):
        show("{{ messages[0].content }}", [{"content": "a"}])


@pytest.mark.parametrize(
    ("template", "chat", "options", "message"),
    [
        ("{{ messages }}", CHAT, {"add_generation_prompt": True}, "got both, expected one"),
        ("fixed", CHAT, {}, "template that reads it"),
        ("{{ messages[0].content }}", CHAT, {}, "got a template that changes the last message"),
        ("{{ messages[0].content }}", [{"role": "x"}], {}, "last message with content"),
        (
            "{{ messages[0].content }}",
            [{"role": "x", "content": [{"type": "image"}]}],
            {},
            "without text, expected text to continue",
        ),
    ],
)
def test_continue_final_message_that_cannot(template: str, chat: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show(template, chat, continue_final_message=True, **options)


@pytest.mark.parametrize(
    ("chat", "error", "message"),
    [
        ([], ValueError, "got no message, expected one or more"),
        ("hello", TypeError, "a list of messages"),
        ({"role": "user"}, TypeError, "a list of messages"),
        (3, TypeError, "a list of messages"),
        (["hello"], TypeError, "a message: got str, expected a dict"),
        ([CHAT, ["x"]], TypeError, "a message: got str, expected a dict"),
    ],
)
def test_conversations_of_the_wrong_kind(chat: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        show("x", chat)


def test_tools_must_be_schemas() -> None:
    with pytest.raises(TypeError, match=r"tools: got .*, expected dicts, such as"):
        show("x", tools=[print])


def test_named_templates() -> None:
    tokenizer = words(chat_template=[{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])

    def text(**options: Any) -> Any:
        return tokenizer.apply_chat_template(CHAT, tokenize=False, **options)

    assert text(tools=[]) == tokenizer.get_chat_template(tools=[]) == "T"
    assert (text(), text(tools=[{}]), text(chat_template="tool_use"), text(chat_template="own")) == (
        "D",
        "T",
        "T",
        "own",
    )
    with pytest.raises(ValueError, match=r"got several without a default, .* pass chat_template= 'rag'"):
        words(chat_template=[{"name": "rag", "template": ""}]).apply_chat_template(CHAT)


def test_no_template_at_all() -> None:
    with pytest.raises(ValueError, match=r"chat_template: got none, expected .*chat_template="):
        Tokenizer(words().backend).apply_chat_template(CHAT)


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"ab\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8 text \(byte 2\)"):
        chat_template.read_files(tmp_path)
    monkeypatch.setattr("refdiff.limits.MAX_TEMPLATE", 2)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: larger than 2 bytes"):
        chat_template.read_files(tmp_path)


def test_threads_share_one_template() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", "f")

    def work(letter: str) -> set[str]:
        return {template.render({"messages": [{"content": letter}] * 20})[0] for _ in range(50)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, "abcd")) == [{letter * 20} for letter in "abcd"]
