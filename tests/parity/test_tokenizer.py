"""The tokenizer and chat templates against transformers' on the same files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401 (transformers without torch would be another program)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import refdiff
from tests.generation.trained_tokenizers import KINDS, ODD_TEXTS, TEXTS, save

CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
ALL_TEXTS = TEXTS + ODD_TEXTS

Pair = tuple[PreTrainedTokenizerFast, refdiff.Tokenizer]


def both(folder: Path) -> Pair:
    return PreTrainedTokenizerFast.from_pretrained(folder), refdiff.Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    return both(save(folder, KINDS[request.param](), tokenizer_config=CONFIG))


def same(theirs: Any, ours: Any) -> None:
    for name in ("input_ids", "attention_mask"):
        if isinstance(ours[name], np.ndarray):
            assert ours[name].dtype == np.int64
        np.testing.assert_array_equal(np.asarray(theirs[name]), np.asarray(ours[name]))


@pytest.mark.parametrize("text", ALL_TEXTS, ids=range(len(ALL_TEXTS)))
@pytest.mark.parametrize("special", [True, False])
def test_one_text(pair: Pair, text: str, special: bool) -> None:
    theirs, ours = pair
    expected = theirs(text, add_special_tokens=special)
    same(expected, ours(text, add_special_tokens=special))
    assert ours.encode(text, add_special_tokens=special) == expected["input_ids"]
    same(theirs(text, return_tensors="np"), ours(text, return_tensors="np"))
    for skip in (True, False):
        ids = expected["input_ids"]
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert ours.decode(np.asarray(ids, dtype=np.int64)) == theirs.decode(ids)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("padding", [True, "longest", "max_length", False])
@pytest.mark.parametrize("multiple", [None, 1, 7, 8])
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_padded_batches(pair: Pair, side: Any, padding: Any, multiple: Any) -> None:
    theirs, ours = pair
    for max_length, truncation in itertools.product((None, 8, 40), (None, True, False)):
        options = {"padding": padding, "padding_side": side, "pad_to_multiple_of": multiple}
        options |= {"max_length": max_length, "truncation": truncation}
        try:
            expected = theirs(ALL_TEXTS, **options)
        except ValueError:
            with pytest.raises(ValueError, match=f"pad_to_multiple_of, {multiple},"):
                ours(ALL_TEXTS, **options)
            continue
        same_lists(expected, ours(ALL_TEXTS, **options))
        if len({len(row) for row in expected["input_ids"]}) == 1:
            same(theirs(ALL_TEXTS, **options, return_tensors="np"), ours(ALL_TEXTS, **options, return_tensors="np"))
        same_lists(theirs(TEXTS[0], **options), ours(TEXTS[0], **options))


def same_lists(theirs: Any, ours: Any) -> None:
    assert dict(ours) == {name: theirs[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first", "only_second", False])
@pytest.mark.parametrize("max_length", [9, 30])
def test_pairs(pair: Pair, truncation: Any, max_length: int) -> None:
    theirs, ours = pair
    firsts, seconds = [TEXTS[0], TEXTS[2]], [TEXTS[1], TEXTS[3]]
    if truncation in ("only_first", "only_second"):  # one text alone has to lose enough
        max_length += max(len(row) for row in theirs(firsts if truncation == "only_second" else seconds)["input_ids"])
    options = {"truncation": truncation, "max_length": max_length}
    same_lists(theirs(firsts, seconds, **options), ours(firsts, seconds, **options))
    same_lists(theirs(firsts[0], seconds[0], **options), ours(firsts[0], seconds[0], **options))


SAVED: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "strings": lambda: {"tokenizer_config": CONFIG},
    "objects": lambda: {
        "tokenizer_config": {
            "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": True},
            "pad_token": {"__type": "AddedToken", "content": "<pad>", "rstrip": True, "special": True},
        }
    },
    "map of strings": lambda: {"special_tokens_map": CONFIG, "tokenizer_config": {}},
    "map of objects": lambda: {
        "special_tokens_map": {"eos_token": {"content": "</s>", "lstrip": True}, "pad_token": {"content": "[PAD]"}},
    },
    "map over config": lambda: {
        "special_tokens_map": {"eos_token": "<|x|>"}, "tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>"}
    },
    "decoder hides the map": lambda: {
        "special_tokens_map": {"eos_token": "<|x|>"},
        "tokenizer_config": {
            "eos_token": "</s>",
            "added_tokens_decoder": {
                "1": {"content": "<s>", "special": True, "normalized": False},
                "900": {"content": "<extra>", "lstrip": True, "rstrip": False, "normalized": False, "special": False},
            },
        },
    },
    "additional": lambda: {"tokenizer_config": {**CONFIG, "additional_special_tokens": ["<|im_end|>", "<|x|>"]}},
    "extra": lambda: {"tokenizer_config": {**CONFIG, "extra_special_tokens": ["<|im_end|>", "fox"]}},
    "named extra": lambda: {"tokenizer_config": {**CONFIG, "extra_special_tokens": {"image_token": "<image>"}}},
    "own name": lambda: {"tokenizer_config": {**CONFIG, "image_token": "<image>"}},
    "new pad": lambda: {"tokenizer_config": {**CONFIG, "pad_token": "<pad>"}},
    "null": lambda: {"tokenizer_config": {**CONFIG, "unk_token": None, "pad_token": None}},
    "split": lambda: {"tokenizer_config": {**CONFIG, "split_special_tokens": True}},
    "add_bos_token is for the slow one": lambda: {"tokenizer_config": {**CONFIG, "add_bos_token": False}},
    "named extra of another form": lambda: {
        "tokenizer_config": {**CONFIG, "extra_special_tokens": {"image": "<image>", "video_token": "<|x|>"}}
    },
    "every setting": lambda: {
        "tokenizer_config": {
            **CONFIG,
            "padding_side": "left",
            "truncation_side": "left",
            "model_max_length": 12,
            "clean_up_tokenization_spaces": True,
            "tokenizer_class": "LlamaTokenizer",
            "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}é\n{% endfor %}",
        }
    },
    "many templates": lambda: {
        "tokenizer_config": {
            **CONFIG,
            "chat_template": [
                {"name": "default", "template": "{{ messages[0].content }}"},
                {"name": "tool_use", "template": "{{ tools | length }}"},
            ],
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("spelling", list(SAVED))
def test_files_and_what_is_saved_of_them(tmp_path: Path, kind: str, spelling: str) -> None:
    """refdiff reads what transformers reads; what `save_pretrained` wrote is the same tokenizer to both libraries."""
    before, saved = both(save(tmp_path / "from", KINDS[kind](), **SAVED[spelling]()))
    folder = tmp_path / "to"
    saved.save_pretrained(folder)
    theirs, ours = both(folder)
    refdiff.DiffLlamaConfig().save_pretrained(folder)  # AutoTokenizer looks at the model's type too
    text = "The fox </s> <pad>  [PAD]<|x|> <image> <extra>\n<|im_end|>end . It 's"
    assert len(saved) == len(before)
    assert saved.vocab_size == before.vocab_size
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(saved, name) == getattr(before, name)
        assert getattr(saved, f"{name}_id") == getattr(before, f"{name}_id")
    for loaded in (saved, theirs, ours, AutoTokenizer.from_pretrained(folder)):
        same_lists(before(text), loaded(text))
        if before.pad_token is not None:
            for options in ({"padding": True}, {"padding": "max_length", "truncation": True, "max_length": 7}):
                same_lists(before(ALL_TEXTS, **options), loaded(ALL_TEXTS, **options))
        for skip in (True, False):
            ids = before(text)["input_ids"]
            assert loaded.decode(ids, skip_special_tokens=skip) == before.decode(ids, skip_special_tokens=skip)
        assert loaded.special_tokens_map == before.special_tokens_map
        assert sorted(loaded.all_special_ids) == sorted(before.all_special_ids)
        assert loaded.get_vocab() == before.get_vocab()
        assert (loaded.padding_side, loaded.truncation_side) == (before.padding_side, before.truncation_side)
        assert (
            loaded.model_max_length == before.model_max_length
            or min(loaded.model_max_length, before.model_max_length) >= 10**30
        )
        assert loaded.chat_template == before.chat_template
        for tools in (None, TOOLS) if before.chat_template else ():
            expected = before.apply_chat_template(CHATS[1], tokenize=False, tools=tools)
            assert loaded.apply_chat_template(CHATS[1], tokenize=False, tools=tools) == expected


def test_conversions(pair: Pair) -> None:
    theirs, ours = pair
    tokens = ["<s>", "</s>", "no such token at all"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    ids = theirs(TEXTS[0])["input_ids"]
    tokens = ours.convert_ids_to_tokens(ids)
    assert tokens == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    rows = theirs(TEXTS)["input_ids"]
    assert ours.batch_decode(rows, skip_special_tokens=True) == theirs.batch_decode(rows, skip_special_tokens=True)
    assert ours.decode(rows) == theirs.decode(rows)


TEMPLATES = {
    "headers": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|head|>' + m['role'] + '<|tail|>\n\n' + m['content'] | trim + '<|x|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\n\n' }}{% endif %}"
    ),
    "chatml": """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>' ~ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "instructions": """{% set ns = namespace(system='') %}
{% if messages[0]['role'] == 'system' %}
  {% set ns.system = messages[0].content ~ '\n\n' %}
  {% set rest = messages[1:] %}
{% else %}
  {% set rest = messages %}
{% endif %}
{{ bos_token }}
{%- for m in rest %}
  {% if m.role == 'user' %} [INST] {{ (ns.system if loop.index0 == 0 else '') + m.content }} [/INST]
  {%- elif m['role'] == "assistant" and m.content is defined %}
   {% generation %}{{ m.content.strip() }}{{ eos_token }}{% endgeneration %}
  {%- endif %}
{% endfor %}""",
    "tools": """{% macro show(t) %}
{{ t.function.name }}({{ t.function.parameters.keys()|list|join(', ') }}){% endmacro %}
{% if tools %}Tools:{% for t in tools %}
- {{ show(t) }} {{ t | tojson(indent=2) }}
{%- if not loop.last %},{% endif %}{% endfor %}{% endif %}
{% for m in messages|reverse if m.role not in ['system', 'tool'] %}
{% if loop.index > 2 %}{% break %}{% endif %}
{{ m | tojson }}|{{ m.role.title() }}|{{ m.content[:3] }}
{{ m.content | default('none', true) | upper | replace('A', '@') }}
{{ loop.index ~ ' of ' ~ loop.length }}
{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}
{{ messages | rejectattr('role', 'in', ['user']) | list | length }} {{ 7 // 2 }} {{ [1, 2] + [3] }} {{ 'ab' * 2 }}
{{ documents }} {{ name }} {{ 1 < 2 <= 2 }} {{ dict(a=1) | items | list }} {{ {'k': [1, none]}['k'] }}
{% for key, value in messages[0].items() %}{{ key|title }}={{ value|string|length }};{% endfor %}{{ none is none }}""",
    "thinking": (
        "{% for m in messages %}{{ m.reasoning_content or '-' }}/{{ m.thinking }}/"
        "{{ m.content.split('</t>')[-1].lstrip('\n') }}{{ m.content.startswith('H') }}{% endfor %}"
    ),
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " Hello 🎉 "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "東京は?\n"},
        {"role": "assistant", "content": "首都 <b>&'\" "},
        {"role": "user", "content": "So?"},
    ],
    [
        {"role": "user", "content": "x", "name": None, "count": 3},
        {"role": "assistant", "content": "a</t>\nb", "reasoning": "why"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}, "день": 1}}}]


@pytest.fixture(scope="module")
def chat_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config = {**CONFIG, "chat_template": [{"name": name, "template": text} for name, text in TEMPLATES.items()]}
    return both(save(tmp_path_factory.mktemp("chat"), KINDS["byte_level"](), tokenizer_config=config))


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_templates(chat_pair: Pair, name: str, chat: Any, prompt: bool) -> None:
    theirs, ours = chat_pair
    options: dict[str, Any] = {"chat_template": name, "add_generation_prompt": prompt, "tools": TOOLS, "name": "Ada"}
    expected = theirs.apply_chat_template(chat, tokenize=False, **options)
    assert ours.apply_chat_template(chat, tokenize=False, **options) == expected
    same_lists(theirs.apply_chat_template(chat, **options), ours.apply_chat_template(chat, **options))
    ids = ours.apply_chat_template([chat, CHATS[0]], padding=True, return_tensors="np", **options)
    same(theirs.apply_chat_template([chat, CHATS[0]], padding=True, return_tensors="np", **options), ids)
    plain = ours.apply_chat_template(chat, return_dict=False, **options)
    assert plain == theirs.apply_chat_template(chat, return_dict=False, **options)


def test_template_files_win(tmp_path: Path) -> None:
    config = {**CONFIG, "chat_template": "old"}
    folder = save(tmp_path, KINDS["byte_level"](), tokenizer_config=config)
    (folder / "chat_template.jinja").write_text("new {{ messages[0].content }}\n", encoding="utf-8")
    theirs, ours = both(folder)
    assert ours.apply_chat_template(CHATS[0], tokenize=False) == theirs.apply_chat_template(CHATS[0], tokenize=False)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools {{ tools|length }}", encoding="utf-8")
    theirs, ours = both(folder)
    for tools in (None, TOOLS):
        expected = theirs.apply_chat_template(CHATS[0], tokenize=False, tools=tools)
        assert ours.apply_chat_template(CHATS[0], tokenize=False, tools=tools) == expected
