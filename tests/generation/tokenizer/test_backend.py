"""The interface to the tokenizer library: any library with the same ids will do; importing refdiff needs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.generation.tokenizer import Backend, RustBackend, Tokenizer, backend_of
from refdiff.generation.tokenizer.backend import Truncation
from tests.generation.tokenizer.test_tokenizer import words

ROOT = Path(__file__).parents[3]
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tokenizers", "huggingface_hub", "jinja2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import refdiff
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
assert model([[1, 2]]).logits.shape[:2] == (1, 2)
refdiff.Tokenizer
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_refdiff_works_without_the_libraries_of_tokenizers_and_the_hub() -> None:
    finished = run(WITHOUT)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("refdiff.Tokenizer.from_pretrained('bundled')", "a tokenizer needs the package tokenizers"),
        ("refdiff.DiffLlamaConfig.from_pretrained('ai/model')", "a download needs the package huggingface_hub"),
    ],
)
def test_where_a_library_is_needed_the_error_says_which(call: str, message: str) -> None:
    finished = run(WITHOUT + call)
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert message in last
    assert last.endswith(f"pip install {message.split()[-1]}")


class Upper:
    """Stands for another library: a token for each letter of the text, whatever its case."""

    settings: dict[str, dict[str, object]] = {"padding": {}, "truncation": {}}  # noqa: RUF012

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def decode_stream(self, *, skip_special_tokens: bool = False) -> object:
        return self._inner.decode_stream(skip_special_tokens=skip_special_tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return self._inner.decode(ids, skip_special_tokens=skip_special_tokens).upper()


def test_another_library_can_stand_behind_the_tokenizer() -> None:
    tokenizer = Tokenizer(Upper(words().backend))
    assert isinstance(tokenizer.backend, Upper)
    assert backend_of(tokenizer) is tokenizer.backend
    assert tokenizer("a b")["input_ids"] == [0, 4, 5]
    assert tokenizer.decode([4, 5]) == "A B"
    assert len(tokenizer) == 8


def test_truncation_leaves_no_trace() -> None:
    backend = words().backend
    assert isinstance(backend, RustBackend)
    (cut,) = backend.encode(["a b c d"], truncation=Truncation(3, stride=1))
    assert [cut.ids, *[piece.ids for piece in cut.overflowing]] == [[0, 4, 5], [0, 5, 6], [0, 6, 7]]
    assert backend.encode(["a b c d"])[0].ids == [0, 4, 5, 6, 7]
    assert '"truncation": null' in backend.to_json()
