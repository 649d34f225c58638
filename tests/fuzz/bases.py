"""The folders that cases start from, made once a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import refdiff
from refdiff.oracle import golden, trace
from refdiff.oracle.inputs.arrays import read_arrays, write_arrays
from tests.generation.trained_tokenizers import KINDS, save
from tests.oracle.golden.vectors import case, right, write_raw

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ROWS = [
    {"prompt": "Once upon", "id": 1},
    {"prompt": "A", "id": "b", "seed": 3},
    {"text": "B C"},
]


@dataclass(frozen=True)
class Base:
    """A folder, and the names of the actions that read it."""

    folder: Path
    actions: tuple[str, ...]


CHECKPOINT = ("load", "forward", "tokenizer", "chat", "generate", "inspect", "inspect_json", "convert", "again")


def make(root: Path) -> dict[str, Base]:
    """Make every base under `root`, a whole `model` beside them, and a `secret` that nothing may read."""
    (root / "outside").mkdir(parents=True)
    (root / "outside" / "secret").write_text("SECRET")
    for variant, tokenizer, size in (
        ("hf", "byte_level", "5GB"),
        ("paper", "byte_fallback", 6000),
        ("v2", "unigram", 6000),
    ):
        folder = root / variant
        backend = KINDS[tokenizer]()
        config = refdiff.DiffLlamaConfig(
            vocab_size=backend.get_vocab_size(), hidden_size=8, intermediate_size=12, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=4, max_position_embeddings=64, variant=variant,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        model = refdiff.DiffLlamaForCausalLM.from_config(config, seed=1, kernels="reference")
        model.generation_config = {"max_new_tokens": 3, "do_sample": True, "top_k": 5, "temperature": 0.7}
        model.save_pretrained(folder, size)
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "model_max_length": 64}
        save(folder, backend, tokenizer_config={**names, "chat_template": TEMPLATE}, vocab={"a": 1})
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    shutil.copytree(root / "hf", root / "model")
    vectors = root / "golden"
    golden.export(vectors, [case("half"), case("unseen")])
    write_raw(vectors / "outputs", right(vectors))
    (root / "trace").mkdir()
    traced = trace(refdiff.DiffLlamaForCausalLM.from_pretrained(root / "model"), [[1, 2, 3]])
    traced.write(root / "trace" / "run.safetensors")
    arrays, _ = read_arrays(root / "trace" / "run.safetensors")
    np.savez(root / "trace" / "run.npz", **{name: np.array(a) for name, a in arrays.items()})
    write_arrays(root / "trace" / "bare.safetensors", {"a": np.ones(3)}, {})
    (root / "prompts").mkdir()
    (root / "prompts" / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        **{name: Base(root / name, CHECKPOINT) for name in ("hf", "paper", "v2")},
        "golden": Base(vectors, ("verify",)),
        "trace": Base(root / "trace", ("trace", "npz")),
        "prompts": Base(root / "prompts", ("prompts",)),
    }
