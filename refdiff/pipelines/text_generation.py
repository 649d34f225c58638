"""prompt or chat → the text that follows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

from refdiff.generation.options import LEFT_OUT, NAMES, check_left_out, set_entries
from refdiff.generation.tokenizer import Encoded
from refdiff.generation.tokenizer.encoded import pad_prompts
from refdiff.pipelines.base import Pipeline, keyword_only

# Defaults of transformers' pipeline, for options that neither the call nor generation_config.json sets
_DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
_TOKENIZER_OPTIONS = ("truncation", "padding", "add_special_tokens")
_GENERATE_OPTIONS = ("generation_config", "seed", "generator", "streamer")
Record = dict[str, Any]


class TextGenerationPipeline(Pipeline):
    """The continuation of a prompt: `[{"generated_text": …}]`, one entry for each returned sequence.

    A chat is a list of `{"role": …, "content": …}`, formatted with the chat template. Its result is the chat with an
    added answer. If the last message is the assistant's, it is continued instead.

    Options include those of `generate` and `seed`. The defaults sample up to 256 tokens at temperature 0.7.
    """

    task: ClassVar[str] = "text-generation"
    architecture: ClassVar[str] = "DiffLlamaForCausalLM"

    def __call__(self, inputs: Any = None, *, text_inputs: Any = None, **options: Any) -> Any:
        """Continue a text or chat, or a list or iterator of them; `text_inputs` is another name of `inputs`.

        A `generation_config` replaces the options of `generate` that the pipeline has.
        """
        own = copy.copy(self)
        if "generation_config" in options:
            own.options = {name: value for name, value in self.options.items() if name not in NAMES}
        return super(TextGenerationPipeline, own).__call__(text_inputs if inputs is None else inputs, **options)

    def _is_one(self, inputs: Any) -> bool:
        is_one = isinstance(inputs, str) or _is_chat(inputs)
        if not is_one and not isinstance(inputs, list | tuple | Iterator):
            raise TypeError(
                f"inputs: got {type(inputs).__name__}, expected a text, a chat, or a list or an iterator of them"
            )
        return is_one

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options: those of a batch, of the tokenizer and of `generate`."""
        return [*keyword_only(cls._generate), *_TOKENIZER_OPTIONS, *NAMES, *_GENERATE_OPTIONS]

    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        left_out = {name: value for name, value in options.items() if name in LEFT_OUT}
        for name, value in left_out.items():
            check_left_out(name, value)
        checked = super()._check_options({name: value for name, value in options.items() if name not in left_out})
        return {**checked, **left_out}

    def _run_batch(self, items: list[Any], size: int, options: dict[str, Any]) -> list[list[Record]]:
        return self._generate(items, **options)

    def _generate(
        self,
        items: list[Any],
        *,
        return_full_text: bool | None = None,
        return_text: bool | None = None,
        return_tensors: bool | None = None,
        prefix: str = "",
        stop_sequence: str | list[str] | None = None,
        handle_long_generation: str | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        skip_special_tokens: bool = True,
        continue_final_message: bool | None = None,
        tools: Any = None,
        documents: Any = None,
        tokenizer_encode_kwargs: dict[str, Any] | None = None,
        **generation: Any,
    ) -> list[list[Record]]:
        """Continue several prompts or chats as one batch.

        return_full_text: False returns only the new text.
        return_text: without effect, as in transformers.
        return_tensors: return `generated_token_ids` instead of text.
        prefix: text before each prompt.
        stop_sequence: stop after this text, or one of several.
        handle_long_generation: "hole" cuts the prompt on the left so that prompt and new text fit the tokenizer's
            model_max_length.
        tokenizer_encode_kwargs: options of the tokenizer, for chats also of the chat template. add_special_tokens,
            truncation, padding and max_length go to the tokenizer too; max_length also limits the result.
        """
        if generation.get("return_dict_in_generate"):
            raise TypeError(
                "return_dict_in_generate: got True, expected False, as a pipeline returns text; for scores and logits "
                "call model.generate"
            )
        if return_tensors and (return_full_text is not None or return_text is not None):
            raise ValueError(
                "return_tensors: got True and an option of the text, expected one of them; leave return_full_text and "
                "return_text out"
            )
        if return_text is not None and return_full_text is not None:
            raise ValueError("return_text, return_full_text: got both, expected one; pass return_full_text alone")
        tokenizer_options = {name: generation.pop(name) for name in _TOKENIZER_OPTIONS if name in generation}
        if generation.get("max_length") is not None:
            tokenizer_options["max_length"] = generation["max_length"]
        tokenizer_options |= tokenizer_encode_kwargs or {}
        template = {"tools": tools, "documents": documents}
        prompts = [_Prompt(item, continue_final_message) for item in items]
        encoded = self._encode(prompts, prefix, tokenizer_options, template)
        generation = self._add_defaults(generation, stop_sequence)
        if handle_long_generation is not None:
            encoded = self._shorten(encoded, generation, handle_long_generation)
        ids, width = encoded["input_ids"], encoded["input_ids"].shape[1]
        sequences = self.model.generate(ids, attention_mask=encoded["attention_mask"], **generation)
        per_prompt = len(sequences) // len(items)
        records = []
        for index, prompt in enumerate(prompts):
            batch = sequences[index * per_prompt : (index + 1) * per_prompt].tolist()
            if return_tensors:
                records.append([{"generated_token_ids": ids} for ids in batch])
                continue
            texts = [
                self.tokenizer.decode(ids[width:], skip_special_tokens, clean_up_tokenization_spaces) for ids in batch
            ]
            full = return_full_text is not False
            records.append([{"generated_text": prompt.join(text) if full else text} for text in texts])
        return records

    def _encode(
        self, prompts: list[_Prompt], prefix: str, options: dict[str, Any], template: dict[str, Any]
    ) -> Encoded:
        chat = any(prompt.is_chat for prompt in prompts)
        if chat and not all(prompt.is_chat for prompt in prompts):
            raise TypeError("inputs: got prompts and chats in one batch, expected one of the two kinds")
        if not chat:
            texts = [prefix + prompt.item for prompt in prompts]
        else:
            names = (*_TOKENIZER_OPTIONS, "max_length")
            template_options = {name: value for name, value in options.items() if name not in names}
            options = {name: value for name, value in options.items() if name in names}
            options["add_special_tokens"] = False  # the template has them
            texts = [
                self.tokenizer.apply_chat_template(
                    prompt.item,
                    tokenize=False,
                    add_generation_prompt=not prompt.continues,
                    continue_final_message=prompt.continues,
                    **template,
                    **template_options,
                )
                for prompt in prompts
            ]
        if len(texts) > 1 and self.tokenizer.pad_token_id is None and "padding" not in options:
            return pad_prompts(self.tokenizer(texts, **{"truncation": False, **options})["input_ids"])
        if len(texts) > 1:
            # Pad on the left, since all prompts of a batch must end at the same position.
            options = {"padding": True, "padding_side": "left", **options}
        return self.tokenizer(texts, return_tensors="np", **options)

    def _add_defaults(self, generation: dict[str, Any], stop_sequence: str | list[str] | None) -> dict[str, Any]:
        given = dict(generation)
        if stop_sequence is not None:
            given["stop_strings"] = [stop_sequence] if isinstance(stop_sequence, str) else stop_sequence
        configured = self._configured(given)
        if given.get("stop_strings", configured.get("stop_strings")) is not None:
            given.setdefault("tokenizer", self.tokenizer)
        set_options = configured.keys() | given.keys()
        added = {name: value for name, value in _DEFAULTS.items() if name not in set_options}
        if "max_length" in set_options:
            added.pop("max_new_tokens", None)
        if not {**configured, **given, **added}.get("do_sample"):
            added.pop("temperature", None)
        if "pad_token_id" not in set_options and self.tokenizer.pad_token_id is not None:
            added["pad_token_id"] = self.tokenizer.pad_token_id
        return {**given, **added}

    def _configured(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Return the options that the model's `generation_config` and that of the call set."""
        return set_entries(self.model.generation_config) | set_entries(generation.get("generation_config"))

    def _shorten(self, encoded: Encoded, generation: dict[str, Any], strategy: str) -> Encoded:
        if strategy != "hole":
            raise ValueError(f'handle_long_generation: got {strategy!r}, expected "hole" or None')
        settings = {**self._configured(generation), **generation}
        width = encoded["input_ids"].shape[1]
        new = settings.get("max_new_tokens")
        new = settings["max_length"] - width if new is None else new
        limit = self.tokenizer.model_max_length
        if width + new <= limit:
            return encoded
        if not 0 <= new < limit:
            raise ValueError(
                f"max_new_tokens: got {new}, expected 0 to {limit - 1}, below the tokenizer's model_max_length"
            )
        return Encoded({name: array[:, new - limit :] for name, array in encoded.items()})


class _Prompt:
    """A prompt or chat, to which `join` appends a result."""

    def __init__(self, item: Any, continue_final_message: bool | None) -> None:
        self.item = item
        self.is_chat = _is_chat(item)
        if not self.is_chat and not isinstance(item, str):
            raise TypeError(
                f"inputs: got {type(item).__name__}, expected a text, or a chat: a list of messages "
                '{"role": …, "content": …}'
            )
        last_role = item[-1].get("role") if self.is_chat else None
        # Few models support two assistant messages in a row, so a chat that ends in one is continued.
        self.continues = last_role == "assistant" if continue_final_message is None else continue_final_message

    def join(self, text: str) -> Any:
        if not self.is_chat:
            return self.item + text
        if not self.continues:
            return [*self.item, {"role": "assistant", "content": text}]
        last = self.item[-1]
        return [*self.item[:-1], {"role": last["role"], "content": _extend_content(last["content"], text)}]


def _extend_content(content: Any, text: str) -> Any:
    if isinstance(content, str):
        return content + text
    # Content in parts: extend the last part with text, where apply_chat_template left the message open.
    index = max(index for index, part in enumerate(content) if "text" in part)
    return [*content[:index], {**content[index], "text": content[index]["text"] + text}, *content[index + 1 :]]


def _is_chat(item: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) > 0
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in item)
    )
