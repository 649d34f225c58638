"""Three scripts written for transformers: what of each must change, and that it then prints the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.generation.trained_tokenizers import TEXTS
from tests.parity.compatibility import GUIDE
from tests.parity.test_pipelines import CHAT_TEMPLATE, LABELS, write

SCRIPTS = Path(__file__).parent / "ported_scripts"
IMPORT = ("from transformers import", "from refdiff import")
TENSORS = ('return_tensors="pt"', 'return_tensors="np"')
CHANGES: dict[str, list[tuple[str, str]]] = {
    "chat": [IMPORT, TENSORS],
    "scores": [
        ("import torch\n", "import numpy as np\n"),
        IMPORT,
        TENSORS,
        ("torch.tensor(", "np.array("),
        ("    with torch.no_grad():\n    ", ""),
    ],
    "entities": [IMPORT],
}
ROWS = {
    "chat": ("a chat with streaming and a stopping criterion of its own", "the import, `return_tensors`"),
    "scores": (
        "scores of a file of labelled texts, in batches",
        "the imports, `return_tensors`, and torch's own: `torch.tensor`, and `torch.no_grad` around a line",
    ),
    "entities": ("the entities of a file's lines, by a pipeline", "the import"),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("DiffLlamaForCausalLM", {}),
    "scores": ("DiffLlamaForSequenceClassification", {"num_labels": 3}),
    "entities": ("DiffLlamaForTokenClassification", {"id2label": dict(enumerate(LABELS))}),
}


def port(name: str) -> tuple[str, str, int]:
    """The script, the same for refdiff, and how many of its lines differ."""
    script = (SCRIPTS / f"{name}.txt").read_text(encoding="utf-8")
    ported = script
    for old, new in CHANGES[name]:
        assert ported.count(old) == 1
        ported = ported.replace(old, new)
    left = ported.splitlines()
    return script, ported, sum(line not in left for line in script.splitlines())


def run(script: str, folder: Path) -> str:
    """What a script prints, without torch and transformers where it is one for refdiff."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers')))\n"
    text = (blocked if "refdiff" in script else "") + script
    paths = os.pathsep.join([str(SCRIPTS.parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8")


@pytest.mark.parametrize("name", CHANGES)
def test_a_ported_script_prints_the_same(name: str, tmp_path: Path) -> None:
    architecture, config = MODELS[name]
    tokenizer = {"pad_token": "</s>", "chat_template": CHAT_TEMPLATE, "model_max_length": 300}
    write(tmp_path / "model", architecture, tokenizer=tokenizer, **config)
    lines = (f"LABEL_{i % 3}\t{' '.join(text.split())}\n" for i, text in enumerate(TEXTS))
    (tmp_path / "texts.tsv").write_text("".join(lines), encoding="utf-8")
    script, ported, _ = port(name)
    want = run(script, tmp_path)
    assert len(want) > 100
    assert run(ported, tmp_path) == want


@pytest.mark.parametrize("name", CHANGES)
def test_the_guide_has_the_number_of_changed_lines(name: str) -> None:
    script, _, changed = port(name)
    what, which = ROWS[name]
    row = f"| `{name}.txt`: {what} | {len(script.splitlines())} | {changed}: {which} |"
    assert row in GUIDE.read_text(encoding="utf-8").splitlines()
