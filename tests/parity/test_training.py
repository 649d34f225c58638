"""What training writes, transformers loads; and training there and here goes the same way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers

from refdiff.model.weights import flatten
from refdiff.training.train import Trainer
from tests.parity.float64_transformers import float64_peer
from tests.training.conftest import _corpus, start  # noqa: F401  (fixtures)

Start = Callable[..., Trainer]


EACH = pytest.mark.parametrize(("variant", "name"), [("hf", "DiffLlamaForCausalLM"), ("plain", "LlamaForCausalLM")])


@EACH
def test_transformers_loads_a_checkpoint_and_its_tokenizer(start: Start, variant: str, name: str) -> None:  # noqa: F811
    trainer = start(variant=variant, max_steps=3)
    folder = trainer.run()
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the golden fox", return_tensors="np")["input_ids"]
    assert ids[0, 0] == tokenizer.eos_token_id == trainer.corpus.separator
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "the golden fox"
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(trainer.model(ids).logits - theirs).max() < 1e-5


@EACH
def test_twenty_steps_are_those_of_torch(start: Start, variant: str, name: str) -> None:  # noqa: F811
    """transformers' model in float64, torch's AdamW, the same batches and rates: the same weights."""
    trainer = start(variant=variant, dtype="float64", max_steps=20, save_every=0)
    first = trainer.save()
    peer = float64_peer(first, name).model.train()
    params = dict(peer.named_parameters())
    groups = [
        {"params": [p for p in params.values() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in params.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    batches: list[tuple[np.ndarray, np.ndarray]] = []
    plain = trainer.model.loss_and_grad

    def watched(ids: np.ndarray, *, position_ids: np.ndarray, labels: np.ndarray) -> object:
        batches.append((ids, position_ids))
        return plain(ids, position_ids=position_ids, labels=labels)

    trainer.model.loss_and_grad = watched
    records: list[dict] = []
    trainer.run(records.append)
    torch.set_default_dtype(torch.float64)
    try:
        for (ids, positions), record in zip(batches, records, strict=True):
            given, places = torch.from_numpy(ids), torch.from_numpy(positions)
            loss = peer(given, position_ids=places, labels=given, use_cache=False).loss
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(params.values()), 1.0)
            for group in adamw.param_groups:
                group["lr"] = record["rate"]
            adamw.step()
            assert abs(loss.item() - record["loss"]) < 1e-9
    finally:
        torch.set_default_dtype(torch.float32)
    for weight, a in flatten(trainer.model.params).items():
        assert np.abs(a - params[weight].detach().numpy()).max() < 1e-8, weight
