"""Damage to a header as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.model.broken.cases import HEADER, RAW_HEADER, Case, with_header


def headers_that_are_no_table() -> Iterator[Case]:
    """Other JSON, nearly JSON, too deep, too long, in other encodings."""
    text = RAW_HEADER.decode()
    for other in ("", "[]", "0", "null", '"x"', "true", "{", "}", "{}", '{"a"}', "[" * 50_000, '{"a":' * 50_000):
        yield with_header(other.encode())
    for before, after in (("\ufeff", ""), (" ", ""), ("\n", ""), ("", "x"), ("", "\0"), ("", "{}"), ("", ",")):
        yield with_header((before + text + after).encode())
    for after in (" ", "        ", "\n", "\t\r\n "):
        yield with_header((text + after).encode(), False)
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        yield with_header(text.encode(encoding))
    yield with_header(text.replace('"', "'").encode())
    yield with_header(text.replace("}}", "},}").encode())
    yield with_header(text.replace("0,", "0, /* first */").encode())
    yield with_header(b"\xff" + RAW_HEADER)
    for number in ("NaN", "Infinity", "-Infinity", "9" * 5000, "1e999", "-0", "0x10", "1_0", "٣"):
        for key in ("shape", "data_offsets"):
            yield with_header(text.replace(f'"{key}": [', f'"{key}": [{number}, ', 1).encode())
    for bad in (None, 1, [], "x", {"a": 1}, {"a": None}, {"a": {}}, {"format": ["pt"]}):
        yield with_header({"__metadata__": bad, **HEADER}, True, "__metadata__")
    for good in ({}, {"format": "pt"}, {"": ""}, {"x" * 10_000: "y" * 100_000}):
        yield with_header({"__metadata__": good, **HEADER}, False)


def doubled_keys() -> Iterator[Case]:
    """The same name twice, with the same or with another content."""
    for name, entry in HEADER.items():
        for other in (entry, {**entry, "dtype": "I32"}, {**entry, "data_offsets": [0, 0], "shape": [0]}):
            again = json.dumps({name: other}).encode()
            yield with_header(RAW_HEADER[:-1] + b"," + again[1:])
            yield with_header(again[:-1] + b"," + RAW_HEADER[1:])
        for key in entry:
            doubled = json.dumps(entry).encode()[:-1] + f', "{key}": {json.dumps(entry[key])}}}'.encode()
            yield with_header(RAW_HEADER.replace(json.dumps(entry).encode(), doubled))
