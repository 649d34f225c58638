"""text ↔ token ids: tokenizer.json through the `tokenizers` library, with Hugging Face's call and padding around it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from refdiff.errors import CheckpointError
from refdiff.files import output_folder, write_atomically, write_json
from refdiff.generation import chat_template as templates
from refdiff.generation.tokenizer import backend as backends
from refdiff.generation.tokenizer.config import (
    NO_LIMIT,
    SETTINGS,
    read_max_length,
    read_side,
    read_tokenizer_config,
    read_vocab_size,
    settings_to_write,
)
from refdiff.generation.tokenizer.encoded import (
    Encoded,
    batch,
    check_ids,
    check_inputs,
    check_multiple,
    check_truncation,
    clean_up_spaces,
    count_characters,
    is_batch,
    pad,
    to_lists,
)
from refdiff.generation.tokenizer.file import load_backend, max_text
from refdiff.generation.tokenizer.vocabulary import Vocabulary
from refdiff.refused import RefusedNames, check_neutral

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from refdiff.generation.chat_template.sandbox import ChatTemplate

_TRUNCATIONS = {True: "longest_first", False: None, None: None, "do_not_truncate": None}
_PADDINGS = {True: "longest", False: None, "do_not_pad": None, "longest": "longest", "max_length": "max_length"}

PaddingStrategy = bool | Literal["longest", "max_length", "do_not_pad"]
TruncationStrategy = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"] | None


class Tokenizer(Vocabulary, RefusedNames):
    """A checkpoint's tokenizer: texts → ids and mask, ids → text, messages → text or ids.

    Ids, truncation and padding are those of transformers' `PreTrainedTokenizerFast`.

    Args:
        backend: a `tokenizers.Tokenizer`, which then is `backend.native`, or a `TokenizerBackend`.
        config: the fields of tokenizer_config.json.
        source: the file that errors name.
        model_vocab_size: the number of ids of the model; a text with other ids is refused.
    """

    def __init__(
        self,
        backend: Any,
        config: Mapping[str, Any] | None = None,
        *,
        source: str | os.PathLike[str] = "tokenizer.json",
        model_vocab_size: int | None = None,
    ) -> None:
        self.config = dict(config or {})
        self.source = Path(source)
        self.model_vocab_size = model_vocab_size
        self._compiled: dict[str, ChatTemplate] = {}
        settings = str(self.source.parent / "tokenizer_config.json")
        super().__init__(backends.backend_of(backend, self.source), self.config, settings)
        self._max_text = max_text(self.backend)
        self.split_special_tokens = self.config.get("split_special_tokens") is True
        padding, truncation = self.backend.settings["padding"], self.backend.settings["truncation"]
        pad_token = padding.get("pad_token")
        if self.pad_token is None and pad_token and self.backend.token_to_id(pad_token) is not None:
            self.pad_token = pad_token
        self.padding_side = read_side(self.config, "padding_side", padding.get("direction", "right"), settings)
        self.truncation_side = read_side(self.config, "truncation_side", truncation.get("direction", "right"), settings)
        self.model_max_length = read_max_length(self.config, settings)
        self.chat_template: str | dict[str, str] | None = templates.parse(self.config.get("chat_template"), settings)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **options: Any,
    ) -> Tokenizer:
        """Load the tokenizer of a checkpoint: a folder, or a hub repo id.

        Args:
            pretrained_model_name_or_path: the folder or the repo.
            options: those of `refdiff.hub.HubOptions`, such as revision and token, and fields of
                tokenizer_config.json, such as `padding_side` and `pad_token`; `use_fast` and other
                arguments of transformers at the values that change nothing.

        Raises:
            CheckpointError: a file is missing, broken, or not a tokenizer; the message names it.
            TypeError: another argument.
        """
        from refdiff import checkpoint_files, hub

        settings = {name: options.pop(name) for name in SETTINGS if name in options}
        place: dict[str, Any] = {name: options.pop(name) for name in hub.ARGUMENTS if name in options}
        check_neutral(cls, "from_pretrained", options, "tokenizer", (*hub.ARGUMENTS, *SETTINGS))
        files = (*checkpoint_files.TOKENIZER_FILES, "additional_chat_templates/*.jinja", "config.json")
        folder = hub.snapshot(pretrained_model_name_or_path, files=files, **place)
        config = read_tokenizer_config(folder)
        if found := templates.read_files(folder):
            config["chat_template"] = found
        config |= settings
        return cls(
            load_backend(folder), config, source=folder / "tokenizer.json", model_vocab_size=read_vocab_size(folder)
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, save_jinja_files: bool = True, **options: Any
    ) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and chat templates; return their paths.

        Without `save_jinja_files`, the templates are in tokenizer_config.json.

        Raises:
            ValueError: the name of a chat template is no file name.
            OSError: the folder cannot be written.
        """
        check_neutral(self, "save_pretrained", options)
        settings = settings_to_write(
            self.config, self.special_tokens_map, self._extra, self.backend.added_tokens(),
            padding_side=self.padding_side, truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
        )  # fmt: skip
        folder = output_folder(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = templates.write_files(folder, self.chat_template if save_jinja_files else None)
        settings |= {} if save_jinja_files else templates.settings(self.chat_template)
        write_atomically(folder / "tokenizer.json", self.backend.to_json().encode("utf-8"), follow_link=False)
        write_json(folder / "tokenizer_config.json", settings)
        return tuple(map(str, (folder / "tokenizer_config.json", *written, folder / "tokenizer.json")))

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: PaddingStrategy = False,
        truncation: TruncationStrategy = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: Literal["left", "right"] | None = None,
        return_tensors: Literal["np"] | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        **options: Any,
    ) -> Encoded:
        """Turn one text, or a list of texts or pairs, into `input_ids` and `attention_mask`.

        padding: True or "longest" pads to the longest of the batch, "max_length" to `max_length`;
        `pad_to_multiple_of` rounds that length up. truncation: True cuts to `max_length` tokens
        (special tokens included), or to the tokenizer's `model_max_length`; `max_length` alone cuts
        too. With `return_overflowing_tokens`, what is cut off comes in further rows that overlap by
        `stride` tokens, and `overflow_to_sample_mapping` has their texts. `is_split_into_words`:
        each text is a list of words. `verbose` is ignored. One text → flat lists, or arrays (1, T)
        with `return_tensors="np"`; a list → a list for each, or int64 arrays (B, T).

        Raises:
            ValueError: padding without a pad token, or an array from texts of different lengths.
        """
        check_neutral(self, "__call__", options)
        if return_tensors not in (None, "np"):
            raise ValueError(f'return_tensors: got {return_tensors!r}, expected None or "np", for NumPy arrays')
        if padding not in _PADDINGS:
            raise ValueError(f"padding: got {padding!r}, expected one of {', '.join(map(repr, _PADDINGS))}")
        if truncation is None and max_length is not None and padding is False:
            truncation = True
        if _PADDINGS[padding] is not None and pad_to_multiple_of is not None:
            check_multiple(pad_to_multiple_of, max_length, _TRUNCATIONS.get(truncation, truncation) is not None)
        encodings = self.encodings(
            text, text_pair, truncation=truncation, max_length=max_length, stride=stride,
            add_special_tokens=add_special_tokens, is_split_into_words=is_split_into_words,
            split_special_tokens=split_special_tokens,
        )  # fmt: skip
        length = self._padded_length(padding, [len(e.ids) for e in encodings], max_length, pad_to_multiple_of)
        if length is not None:
            side, pad_id = self._padding(padding_side)
            for encoding in encodings:
                encoding.pad(length, direction=side, pad_id=pad_id, pad_token=str(self.pad_token))
        rows = [[e, *e.overflowing] if return_overflowing_tokens else [e] for e in encodings]
        flat = [encoding for row in rows for encoding in row]
        fields = {
            "input_ids": ("ids", True),
            "token_type_ids": ("type_ids", return_token_type_ids),
            "attention_mask": ("attention_mask", return_attention_mask is not False),
            "special_tokens_mask": ("special_tokens_mask", return_special_tokens_mask),
            "offset_mapping": ("offsets", return_offsets_mapping),
        }
        entries: dict[str, list[Any]] = {
            name: [getattr(encoding, field) for encoding in flat]
            for name, (field, is_wanted) in fields.items()
            if is_wanted
        }
        if return_length:
            entries["length"] = [len(encoding.ids) for encoding in flat]
        if return_overflowing_tokens:
            entries["overflow_to_sample_mapping"] = [i for i, row in enumerate(rows) for _ in row]
        single = not is_batch(text, is_split_into_words) and not return_overflowing_tokens
        return batch(entries, single, return_tensors, flat)

    def pad(
        self,
        encoded_inputs: Any,
        padding: PaddingStrategy = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Literal["left", "right"] | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Literal["np"] | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> Encoded:
        """Pad results of a tokenizer call, one or a list of them, or a dict with `input_ids`.

        Raises:
            ValueError: there are no `input_ids`, or padding without a pad token.
        """
        check_neutral(self, "pad", options)
        given = encoded_inputs
        if not isinstance(given, Mapping):
            given = {name: [item[name] for item in given] for name in (given[0] if given else ())}
        if "input_ids" not in given:
            raise ValueError(f"encoded_inputs: got {', '.join(given) or 'nothing'}, expected input_ids")
        if any(hasattr(values, "dtype") or (len(values) and hasattr(values[0], "dtype")) for values in given.values()):
            return_tensors = return_tensors or "np"
        entries = {name: to_lists(values) for name, values in given.items()}
        single = not (entries["input_ids"] and isinstance(entries["input_ids"][0], list))
        if single:
            entries = {name: [values] for name, values in entries.items()}
        lengths = [len(ids) for ids in entries["input_ids"]]
        if return_attention_mask is not False:
            entries.setdefault("attention_mask", [[1] * length for length in lengths])
        length = self._padded_length(padding, lengths, max_length, pad_to_multiple_of)
        if length is not None:
            side, pad_id = self._padding(padding_side)
            fill = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
            for name in fill.keys() & entries.keys():
                entries[name] = pad(entries[name], length, fill[name], side)
        return batch(entries, single, return_tensors)

    def encodings(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        truncation: TruncationStrategy = None,
        max_length: int | None = None,
        stride: int = 0,
        add_special_tokens: bool = True,
        is_split_into_words: bool = False,
        split_special_tokens: bool | None = None,
    ) -> list[backends.Encoding]:
        """Tokenize into encodings, one a text: ids with offsets into the text, word numbers, masks.

        `.overflowing` has what is cut off, in pieces of `max_length` that overlap by `stride`.

        Raises:
            ValueError: an input that is no text, a text that is too long for a tokenizer that
                lengthens texts, too small a `max_length`, or an unknown side.
        """
        inputs, has_pair = check_inputs(text, text_pair, is_split_into_words)
        if self._max_text is not None and (characters := count_characters(inputs)) > self._max_text:
            raise ValueError(
                f"text: got {characters:,} characters, expected at most {self._max_text:,}: the steps of {self.source} "
                "may make a text more than 100 times longer; give a shorter one"
            )
        strategy = _TRUNCATIONS.get(truncation, truncation)
        limit: Any = self.model_max_length if max_length is None else max_length
        cut = None
        if isinstance(limit, str):
            raise ValueError(f"max_length: got {limit!r}, expected an integer")
        if strategy is not None and limit <= NO_LIMIT:
            if self.truncation_side not in ("left", "right"):
                raise ValueError(f'truncation_side: got {self.truncation_side!r}, expected "left" or "right"')
            reserved = self.backend.num_special_tokens(pair=has_pair) if add_special_tokens else 0
            check_truncation(strategy, limit, stride, reserved, has_pair=has_pair)
            cut = backends.Truncation(int(limit), stride, str(strategy), self.truncation_side)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        try:
            found = self.backend.encode(
                inputs, add_special_tokens=add_special_tokens, truncation=cut, is_pretokenized=is_split_into_words,
                split_special_tokens=split,
            )  # fmt: skip
        except CheckpointError as error:
            if "too short to respect" not in str(error) and "stride" not in str(error):
                raise
            raise ValueError(
                f"max_length: got {limit}, expected more than {stride} tokens, the stride, for each text that "
                f"truncation={strategy!r} cuts; shorten the other text, lower stride or raise max_length"
            ) from None
        check_ids(found, self.backend, self.model_vocab_size, self.source)
        return found

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """Return the `input_ids` of a call of the tokenizer."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: Any, pair: Any = None, *, add_special_tokens: bool = False, **options: Any) -> list[str]:
        """Turn one text, or a pair, into tokens as the vocabulary spells them."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def decode(
        self,
        token_ids: ArrayLike,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> Any:
        """Turn ids (T,) back into text, or a batch (B, T) into a list of texts.

        Raises:
            ValueError: an id is no whole number from 0, or no id of the tokenizer or its model.
        """
        check_neutral(self, "decode", options)
        nested = to_lists(token_ids)
        if nested and isinstance(nested[0], list):
            return [self._decode(to_lists(ids), skip_special_tokens, clean_up_tokenization_spaces) for ids in nested]
        return self._decode(nested, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self,
        sequences: ArrayLike,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """Turn a batch of ids (B, T), or a list of lists of different lengths, into a list of B texts.

        As in transformers, ids (T,) are a batch of one.
        """
        if not (nested := to_lists(sequences)):
            return []
        texts: str | list[str] = self.decode(nested, skip_special_tokens, clean_up_tokenization_spaces, **options)
        return [texts] if isinstance(texts, str) else texts

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens as the vocabulary spells them into text."""
        return self.backend.decode_tokens(tokens)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        return_dict: bool = True,
        padding: PaddingStrategy = False,
        truncation: TruncationStrategy = None,
        max_length: int | None = None,
        return_tensors: Literal["np"] | None = None,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """Write messages (`{"role": …, "content": …}`) by the model's Jinja template.

        → text with `tokenize=False`, else what the tokenizer returns for that text (only its ids
        with `return_dict=False`); a list of conversations gives a list, and each may be an object
        with `messages`. `chat_template` is a template or the name of one of the checkpoint's;
        `tools` are JSON schemas; `variables` reach the template by their names. With
        `continue_final_message` the text ends inside the last message, for the model to continue
        it; a string names the field to continue, such as "reasoning_content".
        `return_assistant_tokens_mask` adds `assistant_masks`, 1 for the tokens of the template's
        `generation` blocks. `tokenizer_kwargs` are further options of the tokenizer.

        Raises:
            CheckpointError: the template is broken or never ends.
            ValueError: the template refuses the messages.
        """
        conversation = getattr(conversation, "messages", conversation)
        batched = templates.is_batch(conversation)
        if sanitize_control_tokens:
            raise ValueError("sanitize_control_tokens: got True, expected False; check the messages for special tokens")
        if return_assistant_tokens_mask and (continue_final_message or not (tokenize and return_dict)):
            raise ValueError(
                "return_assistant_tokens_mask: got True, expected it with tokenize=True and return_dict=True, and "
                "without continue_final_message"
            )
        template = self._compile(self.get_chat_template(chat_template, tools))
        chats: list[Any] = [getattr(chat, "messages", chat) for chat in (conversation if batched else [conversation])]
        own = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
        variables = {**self.special_tokens_map, **variables, **own}
        found = [templates.render(template, chat, variables, continue_final_message) for chat in chats]
        texts, spans = zip(*found, strict=True)
        rendered = list(texts) if batched else texts[0]
        if not tokenize:
            return rendered
        encoded = self(
            rendered,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        if return_assistant_tokens_mask:
            masks = templates.assistant_masks([encoding.offsets for encoding in encoded.encodings or ()], spans)
            encoded |= batch({"assistant_masks": masks}, not batched, return_tensors)
        return encoded if return_dict else encoded["input_ids"]

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """Return the template that `apply_chat_template` would use for these arguments.

        Raises:
            ValueError: there is no template, or there are several and no default.
        """
        return templates.select(self.chat_template, chat_template, str(self.source.parent), has_tools=tools is not None)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} tokens, {self.special_tokens_map}, source={str(self.source)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}

    def _decode(self, ids: list[Any], skip_special_tokens: bool, clean_up: bool | None) -> str:
        wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < 2**32]
        if wrong:
            raise ValueError(f"token_ids: got {wrong[0]!r}, expected whole numbers from 0 to 2^32 - 1")
        beyond = [i for i in ids if i >= (self.model_vocab_size or 0) and self.backend.id_to_token(i) is None]
        if beyond:
            raise ValueError(f"token_ids: got {beyond[0]}, expected an id of the vocabulary of {len(self)} tokens")
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if clean_up is None:
            clean_up = self.config.get("clean_up_tokenization_spaces") is True
        # transformers ignores the request for BPE, whose decoder puts spaces where they belong.
        return clean_up_spaces(text) if clean_up and self.backend.model("type") != "BPE" else text

    def _padded_length(
        self, padding: Any, lengths: list[int], max_length: int | None, multiple: int | None
    ) -> int | None:
        pad_to = _PADDINGS[padding]
        length = max(lengths, default=0)
        if pad_to == "max_length":
            length = self.model_max_length if max_length is None else max_length
        return None if pad_to is None or length > NO_LIMIT else length + -length % (multiple or 1)

    def _padding(self, side: str | None) -> tuple[str, int]:
        side = self.padding_side if side is None else side
        if side not in ("left", "right"):
            raise ValueError(f'padding_side: got {side!r}, expected "left" or "right"')
        if self.pad_token_id is None:
            raise ValueError(
                "pad_token: got None, expected a token to pad with; choose one first, for example "
                "`tokenizer.pad_token = tokenizer.eos_token`"
            )
        return side, self.pad_token_id

    def _compile(self, template: str) -> ChatTemplate:
        from refdiff.generation.chat_template.sandbox import ChatTemplate

        if template not in self._compiled:
            self._compiled[template] = ChatTemplate(template, str(self.source.parent))
        return self._compiled[template]
