"""A finished run → a model folder to publish: weights in 16 bits, the tokenizer, and a model card.

    python notebooks/experiments/bundle.py RUN OUTPUT --manifest manifest.json

Every number in the card is computed, by this command or by the run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from refdiff.files import write_atomically
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.training import checkpoint
from refdiff.training.data import Corpus
from refdiff.training.evaluate import evaluate
from refdiff.training.settings import Settings, current_names
from refdiff.training.train import VALIDATION_ROWS

LIMIT = 6_000_000
"""The most bytes of a model in the package."""
CHAT_TEMPLATE = "{{ messages | map(attribute='content') | join(' ') }}\n"
"""The model continues what both have written; it has seen no conversation."""
PROMPT, SAMPLE_TOKENS, SAMPLE_SEED = "Once upon a time", 120, 1
_SIZES = {
    "vocab_size": "vocab-size",
    "hidden_size": "hidden-size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv-heads",
    "head_dim": "head-dim",
    "intermediate_size": "intermediate-size",
}


def bundle(run: Path, out: Path, manifest: Sequence[dict[str, Any]], *, dtype: str = "float16") -> dict[str, float]:
    """Write the last checkpoint of a run with weights in `dtype` and a card to a folder; return its validation loss.

    Args:
        manifest: the sources of the text, each with repo, commit, pg_id, stories, bytes and rights.

    Raises:
        ValueError: the run is not finished, or the folder would be larger than a package should carry.
        CheckpointError: there is no checkpoint, or it is broken.
    """
    folder, about = checkpoint.latest(run)
    settings = asdict(Settings(**about["settings"]))
    if about["step"] != settings["max_steps"]:
        raise ValueError(
            f"{run} has made {about['step']} of {settings['max_steps']} steps; continue with --resume first"
        )
    out.mkdir(parents=True, exist_ok=True)
    DiffLlamaForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(out)
    for name in checkpoint.TOKENIZER:
        write_atomically(out / name, (folder / name).read_bytes())
    write_atomically(out / "chat_template.jinja", CHAT_TEMPLATE.encode())
    model, corpus = DiffLlamaForCausalLM.from_pretrained(out, dtype="float32"), Corpus(run / "corpus")
    reached = evaluate(model, corpus, settings["context"], settings["batch_size"])
    changes = [current_names(change) for change in about.get("changes", [])]
    commands = _commands(model.config, settings, changes, corpus.source["name"])
    card = _card(model, corpus, settings, commands, checkpoint.read_log(run), manifest, reached, dtype)
    write_atomically(out / "README.md", card.encode())
    size = sum((out / name).stat().st_size for name in ("model.safetensors", "config.json", *checkpoint.TOKENIZER))
    if size > LIMIT:
        raise ValueError(f"{out} has {size:,} bytes, but a package should not carry more than {LIMIT:,}")
    return reached


def command(config: DiffLlamaConfig, settings: dict[str, Any], text: str, run: str = "run") -> str:
    """Return the command line of such a run, with every option."""
    flags = [f"--variant {config.variant}"]
    flags += [f"--{flag} {getattr(config, name)}" for name, flag in _SIZES.items()]
    flags += [_flag(name, value) for name, value in settings.items() if value != ""]
    lines, line = [], f"refdiff train {shlex.quote(text)} -o {run}"
    for flag in flags:
        if len(line) + len(flag) > 100:
            lines.append(line)
            line = "   "
        line += f" {flag}"
    return " \\\n".join([*lines, line])


def _flag(name: str, value: Any) -> str:
    return f"--{name.replace('_', '-')} {shlex.quote(str(value))}"


def _commands(config: DiffLlamaConfig, settings: dict[str, Any], changes: Sequence[dict[str, Any]], text: str) -> str:
    """Return the command lines of a run: of its start, and of every change of settings on resuming."""
    begun, lines = dict(settings), []
    for change in reversed(changes):
        values = {name: pair for name, pair in change.items() if name != "step"}
        begun |= {name: before for name, (before, _) in values.items()}
        flags = [_flag(name, after) for name, (_, after) in values.items()]
        lines.append(f"refdiff train -o run --resume {' '.join(flags)}  # from step {change['step']}")
    return "\n".join([command(config, begun, text), *reversed(lines)])


def _card(
    model: DiffLlamaForCausalLM, corpus: Corpus, settings: dict[str, Any], commands: str,
    log: Sequence[dict[str, Any]], manifest: Sequence[dict[str, Any]], reached: dict[str, float], dtype: str,
) -> str:  # fmt: skip
    config, steps = model.config, settings["max_steps"]
    seen = steps * settings["batch_size"] * (settings["context"] - 1)
    source = corpus.source
    unseen = 100 * (1 - source["validation_from_byte"] / source["bytes"])
    kind = "a Llama" if config.variant == "plain" else f"a Differential Transformer, variant `{config.variant}`"
    baseline = _baseline(config)
    more = model.num_parameters() - DiffLlamaForCausalLM.from_config(baseline).num_parameters()
    vectors = f", in each layer 4 vectors of {config.head_dim} for λ" if config.variant == "hf" else ""
    curve = [r for r in log if "validation" in r]
    rows = "\n".join(
        f"| {r['step']} | {r['loss']:.3f} | {r['validation']:.3f} | {r['bits_per_byte']:.3f} |" for r in curve
    )
    books = "\n".join(
        f"| [{m['pg_id']}](https://www.gutenberg.org/ebooks/{m['pg_id']}) | {m['repo'].removeprefix('github:')} "
        f"| {m['commit'][:12]} | {m['stories']} | {_rights(m)} |"
        for m in manifest
    )
    return f"""---
license: apache-2.0
language: en
library_name: refdiff
pipeline_tag: text-generation
tags: [diffllama, differential-transformer, fairy-tales]
---

# A small model of fairy tales

{model.num_parameters():,} parameters, {kind} of {config.num_hidden_layers} layers,
{config.hidden_size} wide, trained from scratch by `refdiff train`, in NumPy. With it the first command of the package
works without a network, and learners can look into a trained model. It writes in the style of fairy tales, but knows no
facts. It is an ordinary checkpoint: transformers loads it.

It has seen no conversation. Its chat template joins all messages to one text, so `refdiff generate --chat` tells a tale
in turns: you begin it, the model continues, you continue.

On the last {unseen:.0f} % of the text, which neither the model nor its tokenizer saw in training, it needs
**{reached["bits_per_byte"]:.3f} bits per byte** ({reached["validation"]:.3f} nats a token, rows of
{settings["context"]} tokens, weights in {dtype}). That part begins "{_beginning(corpus)}". The text
before these words, perhaps of the same book, is in the training part.

```
{_sample(model, corpus)}
```

(From "{PROMPT}", temperature 0.7, seed {SAMPLE_SEED}.)

## How it was made

```sh
{commands}
python notebooks/experiments/bundle.py run OUTPUT --manifest manifest.json
```

Its baseline, variant `{baseline.variant}`, is trained on the same rows in the same order. The model here has
{abs(more):,} parameters {"more" if more >= 0 else "less"}{vectors}:

```sh
{command(baseline, settings, source["name"], "baseline")}
```

{seen:,} tokens in {steps:,} steps over a training part of {len(corpus.tokens["train"]):,} tokens. During
training the validation loss was computed on at most {VALIDATION_ROWS} sequences of the validation part, at the end on
all:

| step | loss | validation | bits per byte |
|---|---|---|---|
{rows}

## What it was trained on

{source["bytes"]:,} bytes of fairy tales in the public domain: the books of Project Gutenberg below, in the editions of
these repositories on GitHub. The text itself is not in the package.

| Gutenberg | repository | commit | tales | rights as stated there |
|---|---|---|---|---|
{books}

## Licence

The weights, like the package, are under Apache-2.0. The books are not under copyright in the USA. In other
countries that depends on the dates of their authors.
"""


def _baseline(config: DiffLlamaConfig) -> DiffLlamaConfig:
    """Return the config of the same sizes with plain attention, or with differential attention if it is plain."""
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    return DiffLlamaConfig(**{**fields, "variant": "hf" if config.variant == "plain" else "plain"})


def _beginning(corpus: Corpus) -> str:
    """Return the first words of the validation part."""
    from refdiff.generation.tokenizer import Tokenizer

    ids = corpus.tokens["validation"][:30].tolist()
    words = str(Tokenizer.from_pretrained(corpus.folder).decode(ids, skip_special_tokens=True)).split()
    return " ".join(words[:10])


def _rights(source: dict[str, Any]) -> str:
    """Return the first line of a source's statement of rights."""
    return str((source.get("rights") or ["not stated"])[0]).removeprefix("rights: ").rstrip(".")


def _sample(model: DiffLlamaForCausalLM, corpus: Corpus) -> str:
    from refdiff.generation.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(corpus.folder)
    ids = tokenizer(PROMPT, return_tensors="np")["input_ids"]
    free = max(model.config.max_position_embeddings - ids.shape[1], 1)
    made = model.generate(
        ids, max_new_tokens=min(SAMPLE_TOKENS, free), do_sample=True, temperature=0.7, seed=SAMPLE_SEED,
        eos_token_id=corpus.separator,
    )  # fmt: skip
    return str(tokenizer.decode(made[0], skip_special_tokens=True)).strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder, and print the model's bits per byte."""
    parser = argparse.ArgumentParser("python notebooks/experiments/bundle.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished `refdiff train`")
    parser.add_argument("output", type=Path, help="the model folder to write")
    parser.add_argument("--manifest", type=Path, required=True, help="JSON: the sources of the text")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="default: float16")
    args = parser.parse_args(argv)
    manifest = json.loads(args.manifest.read_text(encoding="utf-8"))
    reached = bundle(args.run, args.output, manifest, dtype=args.dtype)
    sys.stdout.write(f"{args.output}: {reached['bits_per_byte']:.4f} bits per byte\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
