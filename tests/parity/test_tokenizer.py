"""The tokenizer and chat templates against transformers' on the same files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401 (transformers without torch would be another program)
from tokenizers import AddedToken
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


def draw_texts(rng: np.random.Generator, split: bool) -> tuple[Any, Any]:
    """A text and a second one or none, or batches of them, of texts or of lists of words."""

    def one() -> Any:
        text = str(rng.choice(ALL_TEXTS))[: int(rng.integers(1, 90))]
        return text.split() or ["a"] if split else text or "a"

    count = int(rng.integers(1, 5))
    kind = rng.choice(["one", "pair", "batch", "two batches", "batch of pairs"])
    if kind == "one":
        return one(), None
    if kind == "pair":
        return one(), one()
    if kind == "batch of pairs":
        return [(one(), one()) for _ in range(count)], None
    return [one() for _ in range(count)], [one() for _ in range(count)] if kind == "two batches" else None


def draw_options(rng: np.random.Generator) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "padding": [False, True, "longest", "max_length", "do_not_pad"],
        "truncation": [None, True, False, "longest_first", "only_first", "only_second"],
        "max_length": [None, 12, 24, 40],
        "stride": [0, 0, 1, 3],
        "pad_to_multiple_of": [None, None, 4],
        "padding_side": [None, "left", "right"],
        "add_special_tokens": [True, False],
        "split_special_tokens": [None, True, False],
        "return_token_type_ids": [None, True],
        "return_attention_mask": [None, True, False],
        "return_tensors": [None, None, "np"],
        **{
            f"return_{name}": [True, False]
            for name in ("overflowing_tokens", "special_tokens_mask", "offsets_mapping", "length")
        },
    }
    return {name: values[rng.integers(len(values))] for name, values in choices.items()}


def same_encodings(theirs: Any, ours: Any) -> None:
    """Equal in all entries, and in what both answer about tokens, words and characters."""
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        if isinstance(expected, np.ndarray):
            assert ours[name].dtype == np.int64
            np.testing.assert_array_equal(ours[name], expected)
        else:
            assert ours[name] == expected, name
    assert len(ours.encodings) == len(theirs.encodings)
    for i in range(len(ours.encodings)):
        for method in ("tokens", "word_ids", "sequence_ids"):
            assert getattr(ours, method)(i) == getattr(theirs, method)(i)
        for token in range(len(ours.tokens(i))):
            for method in ("token_to_word", "token_to_chars", "token_to_sequence"):
                assert getattr(ours, method)(i, token) == getattr(theirs, method)(i, token)
        for place, sequence in itertools.product(range(6), (0, 1)):
            for method in ("char_to_token", "char_to_word", "word_to_chars", "word_to_tokens"):
                assert outcome(getattr(ours, method), i, place, sequence) == outcome(
                    getattr(theirs, method), i, place, sequence
                )
        given = {"batch_or_char_index": i, "char_index": 1, "sequence_index": 0}
        assert outcome(ours.char_to_token, **given) == outcome(theirs.char_to_token, **given)


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result, or None: where a word or text is not there, transformers' methods may fail."""
    try:
        return function(*args, **options)
    except (TypeError, ValueError):
        return None


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_random_calls(pair: Pair, seed: int) -> None:
    theirs, ours = pair
    rng = np.random.default_rng(seed)
    equal = 0
    for _ in range(20):
        split = bool(rng.integers(2))
        text, second = draw_texts(rng, split)
        options = {**draw_options(rng), "is_split_into_words": split}
        try:
            expected = theirs(text, second, **options)
        except BaseException as error:  # the library's panic derives from no other class
            if isinstance(error, KeyboardInterrupt):
                raise
            with pytest.raises((ValueError, TypeError)):
                ours(text, second, **options)
            continue
        try:
            found = ours(text, second, **options)
        except ValueError as error:
            # transformers loses text at such strides and makes arrays of lists, where refdiff refuses.
            assert re.match("(text|stride|max_length|truncation|pad_to_multiple_of): got", str(error)), error  # noqa: PT017
            continue
        same_encodings(expected, found)
        equal += 1
        if options["return_tensors"] is None and not options["return_overflowing_tokens"]:
            names = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask")
            rows = {name: found[name] for name in names if name in found}
            how = {name: options[name] for name in ("padding_side", "max_length", "pad_to_multiple_of")}
            how["padding"] = options["padding"] or True
            assert dict(ours.pad(dict(rows), **how)) == dict(theirs.pad(dict(rows), **how))
        if isinstance(text, str) and not options["return_overflowing_tokens"]:
            options["return_tensors"] = None
            assert ours.encode(text, second, **options) == theirs.encode(text, second, **options)
            plain = {"is_split_into_words": split}  # transformers' tokenize ignores truncation and padding
            assert ours.tokenize(text, second, **plain) == theirs.tokenize(text, second, **plain)
    assert equal


def test_a_resized_model_reads_added_tokens(tmp_path: Path) -> None:
    """The order of transformers' scripts: add tokens, give the model rows for them, go on with the same tokenizer."""
    save(tmp_path, KINDS["byte_level"](), tokenizer_config=CONFIG)
    tokenizer = refdiff.Tokenizer.from_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = refdiff.DiffLlamaForCausalLM(refdiff.DiffLlamaConfig(vocab_size=len(tokenizer), **sizes))
    model.save_pretrained(tmp_path)
    tokenizer = refdiff.Tokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<new>"])
    ids = tokenizer(["<new>"], return_tensors="np")["input_ids"]
    with pytest.raises(IndexError, match=f"got token id {ids.max()}, expected 0 to {ids.max() - 1}"):
        model(ids)
    model.resize_token_embeddings(len(tokenizer))
    assert model(ids).logits.shape[-1] == len(tokenizer)


def test_added_tokens(tmp_path: Path) -> None:
    """Tokens added by each library are found, named and saved alike."""
    for kind, make in KINDS.items():
        theirs, ours = both(save(tmp_path / kind, make(), tokenizer_config=CONFIG))
        for tokens in (["<new>", "fox", "<s>"], "<new>", [AddedToken("<one>", lstrip=True, single_word=True)], []):
            assert ours.add_tokens(tokens) == theirs.add_tokens(tokens)
        assert ours.add_tokens(["<sp>"], special_tokens=True) == theirs.add_tokens(["<sp>"], special_tokens=True)
        for named in (
            {"mask_token": "<mask>", "pad_token": "[PAD]"},
            {"extra_special_tokens": ["<e1>", "<e2>"]},
            {"additional_special_tokens": ["<e3>"], "sep_token": AddedToken("<sep>", rstrip=True)},
        ):
            assert ours.add_special_tokens(named) == theirs.add_special_tokens(named)
        more = {"extra_special_tokens": ["<e3>", "<e4>"]}
        assert ours.add_special_tokens(more, False) == theirs.add_special_tokens(more, False)
        ours.save_pretrained(tmp_path / "saved")
        again = refdiff.Tokenizer.from_pretrained(tmp_path / "saved")
        text = "a <new> fox<one> <mask> [PAD]<e1><e3> <sep>  x<sp>"
        for tokenizer in (ours, again):
            same_lists(theirs(text), tokenizer(text))
            for name in (
                "mask_token", "mask_token_id", "pad_token_id", "sep_token", "extra_special_tokens",
                "all_special_tokens", "special_tokens_map", "is_fast", "vocab", "added_tokens_encoder",
            ):  # fmt: skip
                assert getattr(tokenizer, name) == getattr(theirs, name), name
            assert list(tokenizer.added_tokens_decoder) == list(theirs.added_tokens_decoder)
            assert tokenizer.num_special_tokens_to_add(True) == theirs.num_special_tokens_to_add(True)
            ids = theirs(text)["input_ids"]
            expected = theirs.convert_ids_to_tokens(ids, skip_special_tokens=True)
            assert tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) == expected


def test_settings_of_from_pretrained(tmp_path: Path) -> None:
    folder = save(tmp_path, KINDS["byte_level"](), tokenizer_config=CONFIG)
    settings = {"padding_side": "left", "pad_token": "[PAD]", "truncation_side": "left", "model_max_length": 9}
    theirs = PreTrainedTokenizerFast.from_pretrained(folder, **settings)
    ours = refdiff.Tokenizer.from_pretrained(folder, use_fast=True, **settings)
    for options in ({"padding": True}, {"padding": "max_length", "truncation": True}):
        same_lists(theirs(ALL_TEXTS, **options), ours(ALL_TEXTS, **options))


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
        assert loaded.model_max_length == before.model_max_length
        assert loaded.chat_template == before.chat_template
        for tools in (None, TOOLS) if before.chat_template else ():
            expected = before.apply_chat_template(CHATS[1], tokenize=False, tools=tools)
            assert loaded.apply_chat_template(CHATS[1], tokenize=False, tools=tools) == expected


def test_a_class_with_rules_of_its_own_is_read_by_its_tokenizer_json(tmp_path: Path) -> None:
    """The guide says so; where both say the same, `AutoTokenizer` is this one, too."""
    save(tmp_path, KINDS["byte_fallback"](), tokenizer_config={**CONFIG, "tokenizer_class": "LlamaTokenizer"})
    refdiff.DiffLlamaConfig().save_pretrained(tmp_path)
    by_class = AutoTokenizer.from_pretrained(tmp_path)
    theirs, ours = both(tmp_path)
    assert by_class("The fox  x")["input_ids"] == ours("The fox  x")["input_ids"]
    for text in (" x", "<s> hi</s> y"):
        assert by_class(text)["input_ids"] != ours(text)["input_ids"] == theirs(text)["input_ids"]


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


@pytest.mark.parametrize("seed", range(20))
def test_random_chat_calls(chat_pair: Pair, seed: int) -> None:
    """Masks of the assistant's tokens, continued fields and options of the tokenizer, over all templates."""
    theirs, ours = chat_pair
    rng = np.random.default_rng(seed)
    spoken = [message for chat in CHATS for message in chat]
    answer = {"role": "assistant", "content": "It is</t> so. ", "reasoning_content": "Hm, 猫 "}
    for _ in range(10):
        chat = [spoken[i] for i in rng.integers(len(spoken), size=3)] + [answer]
        chats = [chat, [spoken[0], answer]] if rng.integers(2) else chat
        options: dict[str, Any] = {
            "chat_template": str(rng.choice(list(TEMPLATES))),
            "padding": True,
            "return_tensors": rng.choice([None, "np"]),
            "tools": [None, TOOLS, []][rng.integers(3)],
            "tokenizer_kwargs": {"padding_side": str(rng.choice(["left", "right"]))},
        }
        if rng.integers(2):
            options["max_length"], options["truncation"] = int(rng.integers(5, 60)), True
        if rng.integers(2):
            options["return_assistant_tokens_mask"] = "% generation" in TEMPLATES[options["chat_template"]]
        else:
            fields = [True, "content", "reasoning_content", "thinking", "reasoning"]
            options["continue_final_message"] = fields[rng.integers(len(fields))]
        try:
            expected = theirs.apply_chat_template(chats, **options)
        except ValueError:
            with pytest.raises(ValueError, match="continue_final_message: got"):
                ours.apply_chat_template(chats, **options)
            continue
        found = ours.apply_chat_template(chats, **options)
        assert set(found) - {"token_type_ids"} == set(expected) - {"token_type_ids"}
        for name, values in found.items():
            np.testing.assert_array_equal(np.asarray(values), np.asarray(expected[name]))


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
