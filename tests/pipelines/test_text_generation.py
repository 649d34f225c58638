"""Prompts and chats to text, on a model that counts upwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import GenerationConfig, Tokenizer
from refdiff.pipelines.text_generation import TextGenerationPipeline
from tests.pipelines.models import model_of, words

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}<s> {% endif %}"
CHAT = [{"role": "user", "content": "a"}]
PREFILL = [*CHAT, {"role": "assistant", "content": "c"}]


class DiffLlamaForCausalLM:
    """Continues each row with the ids that follow its last one, and remembers how it was called."""

    def __init__(self, **generation_config: Any) -> None:
        self.generation_config = generation_config
        self.calls: list[dict[str, Any]] = []

    def generate(self, ids: Any, attention_mask: Any, **options: Any) -> Any:
        self.calls.append({"ids": ids.tolist(), "mask": attention_mask.tolist(), **options})
        new = np.minimum(ids[:, -1:] + np.arange(1, 3), 7) if ids.shape[1] else np.full((len(ids), 2), 4)
        return np.repeat(np.concatenate([ids, new], axis=1), options.get("num_return_sequences", 1), axis=0)


def pipe(tokenizer: Tokenizer | None = None, generation_config: Any = None, **options: Any) -> TextGenerationPipeline:
    model = DiffLlamaForCausalLM(**(generation_config or {}))
    return TextGenerationPipeline(model, tokenizer or words(chat_template=TEMPLATE), **options)


def test_text() -> None:
    generate = pipe()
    assert generate("a") == [{"generated_text": "ab c"}], "what decodes to 'b c' is joined to the prompt as it is"
    assert generate("a", return_full_text=False) == [{"generated_text": "b c"}]
    assert generate("a", return_tensors=True) == [{"generated_token_ids": [0, 4, 5, 6]}]
    assert generate("a", num_return_sequences=2) == [{"generated_text": "ab c"}] * 2
    assert generate(["a", "b"], return_full_text=False) == [[{"generated_text": "b c"}], [{"generated_text": "c d"}]]
    assert generate([]) == []
    assert list(generate(iter(["a"]))) == [generate("a")]


def test_options_that_generate_leaves_out_may_change_nothing() -> None:
    neutral = {"use_cache": False, "diversity_penalty": 0.0, "cache_implementation": None}
    assert pipe()("a", **neutral) == pipe(**neutral)("a") == pipe()("a")
    real = TextGenerationPipeline(model_of("DiffLlamaForCausalLM"), words(), do_sample=False, max_new_tokens=2)
    assert real("a", **neutral) == real("a")
    for make in (lambda: pipe(penalty_alpha=0.6), lambda: pipe()("a", penalty_alpha=0.6)):
        with pytest.raises(TypeError, match="penalty_alpha"):
            make()


def test_chats() -> None:
    generate = pipe()
    assert generate(CHAT) == [{"generated_text": [*CHAT, {"role": "assistant", "content": ""}]}], "</s> and <pad>"
    assert generate(PREFILL) == [{"generated_text": [*CHAT, {"role": "assistant", "content": "cd d"}]}]
    assert generate([PREFILL, PREFILL], return_full_text=False) == [[{"generated_text": "d d"}]] * 2
    assert generate.model.calls[0]["ids"] == [[4, 0]], "no second bos: the template writes the special tokens"
    assert generate.model.calls[1]["ids"] == [[4, 6]]
    generate(PREFILL, continue_final_message=False)
    assert generate.model.calls[-1]["ids"] == [[4, 6, 0]]
    assert PREFILL[-1] == {"role": "assistant", "content": "c"}


def test_a_prefill_with_several_content_parts() -> None:
    parts = [{"type": "text", "text": "c"}, {"type": "image"}]
    generate = pipe(words(chat_template="{{ messages[0].content[0].text }}"))
    (record,) = generate([{"role": "assistant", "content": parts}])
    assert record["generated_text"] == [{"role": "assistant", "content": [{"type": "text", "text": "cd d"}, parts[1]]}]
    assert parts[0]["text"] == "c"


def test_batches_end_on_the_right() -> None:
    generate = pipe()
    expected = generate(["a", "a b", "c"])
    calls = len(generate.model.calls)
    assert generate(["a", "a b", "c"], batch_size=2) == expected
    assert [call["ids"] for call in generate.model.calls[calls:]] == [[[2, 0, 4], [0, 4, 5]], [[0, 6]]]
    assert generate.model.calls[calls]["mask"] == [[0, 1, 1], [1, 1, 1]]
    assert generate.tokenizer.padding_side == "right"


def test_a_batch_needs_no_pad_token() -> None:
    generate = pipe(words(pad_token=None), batch_size=2)
    assert generate(["a", "a b"]) == pipe()(["a", "a b"])
    assert generate.model.calls[0]["ids"] == [[0, 0, 4], [0, 4, 5]]
    assert generate.model.calls[0]["mask"] == [[0, 1, 1], [1, 1, 1]]


def test_an_iterator_is_read_a_batch_at_a_time() -> None:
    generate, texts = pipe(batch_size=2), iter(["a", "a b", "c", "b", "d"])
    results = generate(texts)
    assert next(results) == generate("a")
    assert list(texts) == ["c", "b", "d"]
    assert [len(call["ids"]) for call in generate.model.calls] == [2, 1]
    assert list(results) == [generate("a b")]


@pytest.mark.parametrize(
    ("in_file", "given", "expected"),
    [
        ({}, {}, {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}),
        ({"temperature": 0.3}, {}, {"max_new_tokens": 256, "do_sample": True}),
        ({"max_length": 9}, {"do_sample": False}, {"do_sample": False}),
        ({}, {"max_new_tokens": 4, "seed": 1}, {"max_new_tokens": 4, "do_sample": True, "temperature": 0.7, "seed": 1}),
    ],
)
def test_defaults(in_file: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]) -> None:
    generate = pipe(generation_config=in_file)
    generate("a", **given)
    call = generate.model.calls[-1]
    assert {name: value for name, value in call.items() if name not in ("ids", "mask")} == {
        **expected,
        "pad_token_id": 2,
    }


def test_options_of_tokenizer_and_template() -> None:
    generate = pipe()
    read = generate.model.calls
    generate("a b c", prefix="d ")
    assert read[-1]["ids"] == [[0, 7, 4, 5, 6]]
    generate("a b c", truncation=True, max_length=2)
    assert (read[-1]["ids"], read[-1]["max_length"]) == ([[0, 4]], 2)
    generate("a b c", tokenizer_encode_kwargs={"truncation": True, "max_length": 2})
    assert (read[-1]["ids"], "max_length" in read[-1]) == ([[0, 4]], False)
    generate("a", stop_sequence="c")
    assert (read[-1]["stop_strings"], read[-1]["tokenizer"]) == (["c"], generate.tokenizer)
    assert generate("a", skip_special_tokens=False, return_full_text=False) == [{"generated_text": "b c"}]
    seen = "{{ tools | length }}{{ documents | length }}{{ mood }}"
    chatty = pipe(words(chat_template=seen + "{{ messages | length }}", unk_token="<unk>"))
    chatty(
        CHAT, tools=[{}], documents=[{}, {}], tokenizer_encode_kwargs={"mood": "a", "truncation": True, "max_length": 9}
    )
    assert chatty.model.calls[-1]["ids"] == [[3]]


def test_long_prompts_in_a_hole() -> None:
    generate = pipe(words(model_max_length=4))
    generate("a b c d", handle_long_generation="hole", max_new_tokens=2)
    assert generate.model.calls[-1]["ids"] == [[6, 7]]
    assert generate.model.calls[-1]["mask"] == [[1, 1]]
    generate("a b", handle_long_generation="hole", max_length=3)
    assert generate.model.calls[-1]["ids"] == [[0, 4, 5]]
    with pytest.raises(ValueError, match="max_new_tokens: got 4, expected 0 to "):
        generate("a b c d", handle_long_generation="hole", max_new_tokens=4)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (5, {}, TypeError, "inputs: got int, expected a text, a chat, or a list"),
        ([5], {}, TypeError, "inputs: got int, expected a text, or a chat"),
        (["a", CHAT], {"batch_size": 2}, TypeError, "got prompts and chats in one batch"),
        ("a", {"batch_size": 0}, ValueError, "batch_size: got 0"),
        ("a", {"return_full_text": True, "return_tensors": True}, ValueError, "return_tensors: got True and an option"),
        ("a", {"return_full_text": True, "return_text": True}, ValueError, "return_text, return_full_text: got both"),
        ("a", {"handle_long_generation": "cut"}, ValueError, "handle_long_generation: got 'cut'"),
        ("a", {"return_dict_in_generate": True}, TypeError, "call model.generate"),
    ],
)
def test_wrong_calls(inputs: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pipe()(inputs, **options)


def test_a_generation_config_is_that_of_transformers_pipelines() -> None:
    generate = pipe(max_new_tokens=9, prefix="d ")
    generate(text_inputs="a", generation_config={"max_new_tokens": 3, "stop_strings": "c"})
    call = generate.model.calls[-1]
    assert call["ids"] == [[0, 7, 4]]
    assert call.keys() >= {"do_sample", "temperature", "tokenizer"}
    assert "max_new_tokens" not in call
    generate("a", generation_config=GenerationConfig(do_sample=False))
    assert generate.model.calls[-1].keys() & {"do_sample", "temperature", "max_new_tokens"} == {"max_new_tokens"}
    real = TextGenerationPipeline(model_of("DiffLlamaForCausalLM"), words(), do_sample=False, max_new_tokens=2)
    settings = GenerationConfig(do_sample=False, max_new_tokens=3)
    assert real("a", generation_config=settings) == real("a", max_new_tokens=3)
    with pytest.raises(TypeError, match="generation_config: got 'x', expected a GenerationConfig or a dict"):
        real("a", generation_config="x")
