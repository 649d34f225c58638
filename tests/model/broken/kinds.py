"""Every kind of damage: a function that yields cases. Everything follows from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.model.broken import configs, file_bytes, headers, shards, tensors, texts
from tests.model.broken.cases import SHARDED, SOUND, TENSORS, Case, single
from tests.model.weights.files import pack


def sound() -> Iterator[Case]:
    """Nothing wrong: the tests must be able to tell."""
    yield Case({**SOUND}, False)
    yield Case({**SHARDED}, False)
    yield single(pack(dict(reversed(TENSORS.items()))), False)
    yield single(pack(TENSORS, align=0), False)


KINDS: dict[str, Callable[[], Iterator[Case]]] = {
    kind.__name__: kind
    for kind in (
        sound, file_bytes.truncated, file_bytes.extended, file_bytes.bits_of_the_length, file_bytes.bits_of_the_header,
        file_bytes.bytes_of_the_header, file_bytes.other_files, headers.headers_that_are_no_table,
        headers.doubled_keys, tensors.fields_of_a_tensor, tensors.types_and_shapes, tensors.places, tensors.names,
        tensors.values, shards.shards, shards.ways_out_of_the_folder, shards.index_files, configs.config_files,
    )
}  # fmt: skip

# What is read by the tokenizer.
TEXT_KINDS: dict[str, Callable[[], Iterator[texts.TextCase]]] = {
    kind.__name__: kind
    for kind in (
        texts.sound_texts, texts.tokenizer_bytes, texts.tokenizer_fields, texts.tokenizer_wounds, texts.template_bytes,
        texts.template_escapes, texts.template_bombs, texts.template_refusals,
    )
}  # fmt: skip
