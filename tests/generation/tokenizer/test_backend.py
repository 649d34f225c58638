"""The interface to the tokenizer library: any library with the same ids will do; importing refdiff needs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
