"""tokens ↔ ids, and the special tokens by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from refdiff.generation.tokenizer.backend import AddedToken, TokenizerBackend
from refdiff.generation.tokenizer.config import NAMES, add_missing, named_tokens, to_token
from refdiff.generation.tokenizer.file import check_tokens


def _special_token(name: str) -> Any:
    """Return the property `pad_token`: the token's text, or None; it can be set to any token of the vocabulary."""
    return property(
        lambda tokenizer: tokenizer.special_tokens_map.get(name),
        lambda tokenizer, token: tokenizer._set_special(name, token),
    )


def _special_token_id(name: str) -> Any:
    """Return the property `pad_token_id`: the same token by its id."""

    def read(tokenizer: Vocabulary) -> int | None:
        token = tokenizer.special_tokens_map.get(name)
        return None if token is None else tokenizer.backend.token_to_id(token)

    def write(tokenizer: Vocabulary, token_id: int | None) -> None:
        token = None if token_id is None else tokenizer.backend.id_to_token(token_id)
        if token is None and token_id is not None:
            raise ValueError(f"{name}_id: got {token_id}, expected 0 to {len(tokenizer) - 1}")
        tokenizer._set_special(name, token)

    return property(read, write)


class Vocabulary:
    """The vocabulary of `backend`, completed by the special tokens that only tokenizer_config.json (`config`) knows."""

    model_input_names: ClassVar[Sequence[str]] = ("input_ids", "attention_mask")
    model_vocab_size: int | None
    pad_token_type_id: ClassVar[int] = 0
    bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token = map(_special_token, NAMES)
    bos_token_id, eos_token_id, unk_token_id, sep_token_id, pad_token_id, cls_token_id, mask_token_id = map(
        _special_token_id, NAMES
    )

    def __init__(self, backend: TokenizerBackend, config: dict[str, Any], settings: str) -> None:
        self.backend = backend
        self.deprecation_warnings: dict[str, bool] = {}  # scripts for transformers silence warnings by it
        self._extra = [token.content for token in add_missing(backend, config, settings)]
        self._special = {name: token.content for name, token in named_tokens(config, settings).items()}

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by name, in transformers' order: `{"bos_token": "<s>", …}`."""
        names = [name for name in NAMES if name in self._special]
        return {name: self._special[name] for name in [*names, *(set(self._special) - set(names))]}

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: the named ones, then `extra_special_tokens`."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        ids = (self.backend.token_to_id(token) for token in self.all_special_tokens)
        return [token_id for token_id in ids if token_id is not None]

    @property
    def vocab_size(self) -> int:
        """The number of tokens without the added ones; `len(tokenizer)` counts those too."""
        return self.backend.vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend.vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """token → id, added tokens included."""
        return self.backend.vocab()

    vocab = property(get_vocab)
    is_fast = True

    @property
    def extra_special_tokens(self) -> list[str]:
        """The special tokens without a name; to set them or their ids replaces them."""
        return list(self._extra)

    @extra_special_tokens.setter
    def extra_special_tokens(self, tokens: Sequence[str]) -> None:
        self._extra = [to_token(token, "extra_special_tokens", True).content for token in tokens]

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """The ids of `extra_special_tokens`."""
        ids = (self.backend.token_to_id(token) for token in self._extra)
        return [token_id for token_id in ids if token_id is not None]

    @extra_special_tokens_ids.setter
    def extra_special_tokens_ids(self, ids: Sequence[int]) -> None:
        self.extra_special_tokens = [str(token) for token in self.convert_ids_to_tokens(ids)]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """id → added token."""
        return self.backend.added_tokens()

    def get_added_vocab(self) -> dict[str, int]:
        """Added token → id."""
        return {token.content: token_id for token_id, token in sorted(self.added_tokens_decoder.items())}

    added_tokens_encoder = property(get_added_vocab)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens are added to a text or a pair."""
        return self.backend.num_special_tokens(pair=pair)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add a token, or a list of them, as strings or `AddedToken`; return how many are new.

        A model needs a row of its embedding for each new id.

        Raises:
            TypeError: a token is neither.
        """
        given = new_tokens if isinstance(new_tokens, list | tuple) else [new_tokens] if new_tokens else []
        tokens = [to_token(token, "new_tokens", special_tokens) for token in given]
        if not tokens:
            return 0
        check_tokens(tokens, self.backend, "new_tokens")
        count = self.backend.add_tokens(tokens)
        if self.model_vocab_size is not None:
            self.model_vocab_size = max(self.model_vocab_size, len(self))
        return count

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Add special tokens by name, `{"pad_token": "<pad>"}`, or as `extra_special_tokens`.

        Return how many are new.

        Raises:
            ValueError: an unknown name.
            TypeError: a token is neither a string nor an `AddedToken`.
        """
        count, given = 0, dict(special_tokens_dict)
        if "additional_special_tokens" in given and not given.get("extra_special_tokens"):  # the older name
            given["extra_special_tokens"] = given.pop("additional_special_tokens")  # last, which decides the ids
        for name, value in given.items():
            is_extra = name == "extra_special_tokens"
            if name not in NAMES and not is_extra:
                raise ValueError(
                    f"special_tokens_dict: got {name!r}, expected one of {', '.join(NAMES)} or extra_special_tokens"
                )
            tokens = [to_token(token, name, True) for token in (value if is_extra else [value])]
            count += self.add_tokens(tokens, special_tokens=True)
            contents = [token.content for token in tokens]
            if not is_extra:
                self._set_special(name, contents[0])
            elif replace_extra_special_tokens and contents:
                self._extra = contents
            else:
                self._extra += [token for token in contents if token not in self._extra]
        return count

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """token → id, or a list of them; an unknown one gives `unk_token_id`."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """id → token as the vocabulary spells it, or a list for ids (T,); None for an unknown id."""
        if isinstance(ids, int | np.integer):
            return self.backend.id_to_token(int(ids)) if ids >= 0 else None
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(int(token_id)) for token_id in ids if int(token_id) not in skipped]

    def _set_special(self, name: str, token: str | None) -> None:
        if token is None:
            self._special.pop(name, None)
        elif not isinstance(token, str) or self.backend.token_to_id(token) is None:
            raise ValueError(f"{name}: got {token!r}, expected a token of the vocabulary")
        else:
            self._special[name] = token
