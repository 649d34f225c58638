"""The run of `refdiff train` once more, by transformers and torch: the same weights, rows, optimizer and schedule.

    python -m tests.parity.train_with_torch RUN [--steps N] [-o FILE] [--keep STATE]

RUN is the folder of a run of `refdiff train`, finished or not. Its model is drawn again from its seed and trained by
torch's autograd, `torch.optim.AdamW` and, where the run has it, `torch.optim.Muon`. At each step at which the run
looked at its validation loss, both are printed side by side, and with --keep everything that the next step needs is
written, so that the same command goes on after it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import refdiff
from refdiff.training import checkpoint
from refdiff.training.data import Corpus, row_order
from refdiff.training.schedule import learning_rate
from refdiff.training.train import GLANCE


def first_model(folder: Path, seed: int) -> Any:
    """The run's model before its first step, in transformers."""
    config = refdiff.DiffLlamaConfig.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as new:
        refdiff.DiffLlamaForCausalLM.from_config(config, seed).save_pretrained(new)
        kind = transformers.LlamaForCausalLM if config.wiring == "none" else transformers.DiffLlamaForCausalLM
        return kind.from_pretrained(new, dtype=torch.float32, attn_implementation="sdpa")


def optimizers(model: Any, settings: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """AdamW that lets matrices decay and vectors not; Muon for the matrices of the layers, if the run has it."""
    decay, named = settings["decay"], list(model.named_parameters())
    muon = [p for n, p in named if settings["optimizer"] == "muon" and p.ndim == 2 and "layers." in n]
    others = [p for _, p in named if all(p is not m for m in muon)]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)]
    if muon:
        options: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
        made.append(torch.optim.Muon(muon, lr=1.0, weight_decay=decay, **options))
    return made


def loss_of(model: Any, ids: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    """The mean loss of rows in which each document sees itself alone."""
    tokens = torch.from_numpy(np.asarray(ids, np.int64))
    out = model(tokens, position_ids=torch.from_numpy(np.asarray(positions, np.int64)), labels=tokens, use_cache=False)
    loss: torch.Tensor = out.loss
    return loss


def validation(model: Any, corpus: Corpus, context: int, batch: int, most: int | None) -> float:
    """The mean loss over the rows that `refdiff.training.train.evaluate` takes."""
    rows = np.arange(corpus.rows("validation", context))
    rows = rows if most is None else rows[:: -(-len(rows) // most)]
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            ids, positions = corpus.batch("validation", rows[start : start + batch], context)
            total += float(loss_of(model, ids, positions)) * ids[:, 1:].size
            count += ids[:, 1:].size
    return total / count


def keep(path: Path, step: int, model: Any, made: Sequence[torch.optim.Optimizer]) -> None:
    """Write the state after `step` steps, whole or not at all."""
    new = path.with_name(path.name + ".new")
    torch.save({"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in made]}, new)
    new.replace(path)


def kept(path: Path, model: Any, made: Sequence[torch.optim.Optimizer]) -> int:
    """Take up a state that `keep` wrote, and return its number of steps."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, one in zip(made, state["optimizers"], strict=True):
        optimizer.load_state_dict(one)
    return int(state["step"])


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print both validation losses where the run has one."""
    parser = argparse.ArgumentParser("python -m tests.parity.train_with_torch", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, help="stop after so many (default: all of the run's)")
    parser.add_argument("-o", "--output", type=Path, help="write a line of JSON for each comparison here too")
    parser.add_argument("--keep", type=Path, metavar="STATE", help="go on from this file where it is, and keep it new")
    args = parser.parse_args(argv)
    folder, about = checkpoint.latest(args.run)
    s = about["settings"]
    if "changes" in about:
        raise SystemExit(f"{args.run} went on with other settings, which is not followed here: {about['changes']}")
    corpus = Corpus(args.run / "corpus")
    log = checkpoint.read_log(args.run)
    theirs = {record["step"]: record["validation"] for record in log if "validation" in record}
    model = first_model(folder, s["seed"])
    made, rows = optimizers(model, s), corpus.rows("train", s["context"])
    done = kept(args.keep, model, made) if args.keep and args.keep.exists() else 0
    for step in range(done, args.steps or s["steps"]):
        order = row_order(rows, s["seed"], step * s["batch"], s["batch"])
        for part in np.split(order, s["accumulate"]):
            (loss_of(model, *corpus.batch("train", part, s["context"])) / s["accumulate"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s["clip"])
        rate = learning_rate(step, peak=s["rate"], steps=s["steps"], warmup=s["warmup"], schedule=s["schedule"])
        for optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if step + 1 in theirs:
            most = None if step + 1 == s["steps"] else GLANCE
            found = validation(model, corpus, s["context"], s["batch"], most)
            record = {"step": step + 1, "torch": found, "refdiff": theirs[step + 1]}
            record["ratio"] = record["refdiff"] / found
            if not math.isfinite(record["ratio"]):
                raise SystemExit(f"not finite: {record}")
            print(json.dumps(record), flush=True)
            if args.output:
                with args.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            if args.keep:
                keep(args.keep, step + 1, model, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
