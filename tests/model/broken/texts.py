"""Damage to tokenizer.json and chat_template.jinja, and what must come of reading them."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.generation.chat_template import test_sandbox as templates
from tests.generation.tokenizer import test_file as files
from tests.generation.trained_tokenizers import KINDS as TOKENIZERS
from tests.model.broken.cases import SECRET, Link, Trap, flipped

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
CONFIG: dict[str, bytes | Link] = {"config.json": b'{"vocab_size": 2}'}
WORDS: dict[str, Any] = {"version": "1.0", "model": files.MODEL}
SOUND: dict[str, bytes | Link] = {**CONFIG, TOKENIZER: json.dumps(WORDS).encode()}


@dataclass(frozen=True)
class TextCase:
    """A tokenizer's folder: its files, and what must come of reading it, a text in and out, and a chat.

    `fails`: True = a CheckpointError that names `file`; False = none; None = one of the two. `refuses`: a ValueError
    that is no CheckpointError, as the template asked for. `prints`: the chat as text, where that is known.
    `private`: nothing of Python's may be printed.
    """

    files: dict[str, bytes | Link]
    fails: bool | None
    file: str = ""
    refuses: bool = False
    prints: str | None = None
    private: bool = False


def tokenizer(content: bytes | Any, fails: bool | None = True) -> TextCase:
    """A folder with this tokenizer.json, bytes or a value."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return TextCase({**CONFIG, TOKENIZER: raw}, fails, TOKENIZER)


def template(content: bytes | str, fails: bool | None = True, **outcome: Any) -> TextCase:
    """A sound tokenizer with this template."""
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return TextCase({**SOUND, TEMPLATE: raw}, fails, **outcome)


def sound_texts() -> Iterator[TextCase]:
    """Nothing wrong: the tests must be able to tell."""
    yield TextCase(SOUND, False)
    yield template("{{ messages[0].content }}!", False, prints="Hello\n  there!")
    yield from (template(text, False) for text in templates.ORDINARY)


def tokenizer_bytes() -> Iterator[TextCase]:
    """tokenizer.json cut short, with bits flipped, in other encodings, a pickle, too deep."""
    content = json.dumps(WORDS).encode()
    yield from (tokenizer(content[:size]) for size in range(len(content)))
    yield from (tokenizer(flipped(content, bit), None) for bit in range(8 * len(content)))
    yield from (tokenizer(content[:at] + b"\xff" + content[at:]) for at in range(len(content)))
    yield from (tokenizer(content.decode().encode(name)) for name in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"))
    yield from (tokenizer(pickle.dumps(Trap(), protocol)) for protocol in range(6))
    for depth in (101, 1_000, 100_000):
        yield from (tokenizer(opening * depth) for opening in (b"[", b'{"model":', b'{"normalizer":['))
        steps = b'{"type":"Sequence","normalizers":[' * depth + b"]}" * depth
        yield tokenizer(content[:-1] + b', "normalizer": ' + steps + b"}")
    for target in (f"../{SECRET}", f"{{outside}}/{SECRET}", "/dev/zero", "/proc/self/mem", "..", ".", TOKENIZER):
        yield TextCase({**CONFIG, TOKENIZER: Link(target)}, True, TOKENIZER)


def tokenizer_fields() -> Iterator[TextCase]:
    """Fields of the wrong type, ids beyond the model's vocabulary, steps that blow a text up."""
    yield from (
        tokenizer(content.encode() if isinstance(content, str) else content) for content in files.BROKEN.values()
    )
    yield from (tokenizer({**WORDS, **bomb}) for bomb in files.BOMBS.values())
    for beyond in (2, 3, 1000, 2**31, 2**32 - 1, 2**32, 2**63, 10**30, -1, 0.5, "1", None, [1]):
        yield tokenizer({**WORDS, "model": {**files.MODEL, "vocab": {"a": 0, "b": beyond}}})
    fields = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    for field in (*fields, "model"):
        for bad in (True, 0, -1, 1.5, 10**400, "", "x", [], [1], {}, {"type": "x"}, {"type": None}, [[[]]], "\0" * 9):
            yield tokenizer({**WORDS, field: bad}, None)
    for field in ("type", "vocab", "unk_token"):
        for bad in (None, True, 0, 10**30, "", "x", [], [["a", 0]], [["a"]], {}, {"a": {}}, {"": 0}, {"a": [0]}):
            yield tokenizer({**WORDS, "model": {**files.MODEL, field: bad}}, None)


def tokenizer_wounds() -> Iterator[TextCase]:
    """Random wounds to tokenizers of each kind: bytes cut, flipped, doubled, dropped; values exchanged."""
    rng = random.Random(16)
    for kind in TOKENIZERS.values():
        content = kind().to_str().encode()
        yield from (TextCase({TOKENIZER: files.damaged(rng, content)}, None, TOKENIZER) for _ in range(400))


def template_bytes() -> Iterator[TextCase]:
    """Templates that do not compile or fail, that are no text, and ordinary ones with bytes changed at random."""
    yield from (template(text) for text in templates.BROKEN.values())
    yield from (template(pickle.dumps(Trap(), protocol), None) for protocol in range(6))
    yield from (template(raw, file=TEMPLATE) for raw in (b"\xff", b"a\xc3", b"\xed\xa0\x80", "ä".encode("latin-1")))
    for target in (f"../{SECRET}", f"{{outside}}/{SECRET}", "/proc/self/mem"):
        yield TextCase({**SOUND, TEMPLATE: Link(target)}, True, TEMPLATE)
    for tag in ("if", "for", "set", "macro", "call", "filter", "block", "with", "include", "import", "from", "extends"):
        for rest in ("", " ", " x", " 1 +", " (", " 'x' ", " x in", " '/etc/passwd' ignore missing", " _x", " x = 1"):
            yield template(f"{{% {tag}{rest} %}}", None)
    rng = random.Random(17)
    for text in templates.ORDINARY:
        content = text.encode()
        for _ in range(25):
            at, size = rng.randrange(len(content)), rng.choice((1, 2, 5))
            noise = rng.choice((b"", rng.randbytes(size), rng.choice((b"{{", b"}}", b"{%", b"%}", b"(", b"'", b".__"))))
            yield template(content[:at] + noise + content[at + size :], None)


PRIVATE = (
    "__class__", "__globals__", "__init__", "__subclasses__", "__mro__", "__dict__", "__code__", "__self__",
    "__builtins__", "__reduce__", "gi_frame", "f_globals", "_TemplateReference__context",
)  # fmt: skip
THINGS = (
    "''", "1", "messages", "messages[0]", "range", "cycler", "joiner()", "namespace", "namespace(a=1)", "dict",
    "raise_exception", "strftime_now", "self", "none", "''.join", "missing",
)  # fmt: skip
WAYS = (
    "{{ O.A }}", "{{ O['A'] }}", "{{ O | attr('A') }}", "{{ [O] | map(attribute='A') | list }}",
    "{{ '{0.A}'.format(O) }}", "{{ '{x.A}'.format_map({'x': O}) }}", "{% set x = O %}{{ x.A }}", "{{ O.A() }}",
    "{{ (O.A).x }}", "{{ O | sum('A') }}", "{{ [O] | groupby('A') | map(attribute='grouper') | list }}",
)  # fmt: skip


def template_escapes() -> Iterator[TextCase]:
    """Every way to an attribute that leads to Python, of every object in reach; files that are asked for."""
    yield from (template(text) for text in templates.ESCAPES.values())
    for name in PRIVATE:
        for thing in THINGS:
            for way in WAYS:
                yield template(way.replace("O", thing).replace("A", name), None, private=True)
    for path in (TOKENIZER, f"../{SECRET}", "/etc/passwd", "os", "", "x\0", "http://127.0.0.1/"):
        for text in ("include P", "import P as x", "from P import x", "extends P", "include [P, P]"):
            yield template("{% " + text.replace("P", repr(path)) + " %}")


def template_bombs() -> Iterator[TextCase]:
    """Loops, repeats, recursion and growth that would not end or not fit."""
    yield from (template(text) for text in templates.STOPPED.values())
    for number in (10**6, 10**9, 10**30):
        for text in ("{{ 'a' * N * N }}", "{{ [1] * N * N }}", "{{ 'a'.ljust(N * N) }}", "{{ '%*d' % (N * N, 1) }}",
                     "{{ range(N * N) | list }}", "{{ N ** N }}", "{{ 'a' | indent(N * N) }}"):  # fmt: skip
            yield template(text.replace("N", str(number)))


def template_refusals() -> Iterator[TextCase]:
    """`raise_exception`: the template works, and does not take these messages."""
    for text in ("no", "", "x" * 10_000, "a\nb", "é", "{{ 1 }}"):
        call = "{{ raise_exception(" + json.dumps(text, ensure_ascii=False) + ") }}"
        yield template(call, None, refuses=True)
        yield template(
            "{% for m in messages %}{% if loop.last %}" + call + "{% endif %}{% endfor %}", None, refuses=True
        )
