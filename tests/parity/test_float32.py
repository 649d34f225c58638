"""float32: refdiff's rounding errors are at most twice those of transformers' own float32.

Both are compared with the same truth, float64 on the weights as float32 has them. An error here is the distance of a
row (the last axis) from the truth. Single errors are luck, so many rows are taken: their root mean square, and the
error that one in twenty exceeds, hardly depend on the machine's order of summation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.parity.conftest import Checkpoint
from tests.parity.float64_transformers import Peer, build, float32_peer

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")

ALLOWED = 2.0
ROWS, LENGTH = 48, 12
OUTPUTS = ("logits", "last_hidden_state", "start_logits", "end_logits")


def truth_of_rounded_weights(checkpoint: Checkpoint) -> Peer:
    loaded = getattr(transformers, checkpoint.architecture).from_pretrained(checkpoint.folder, dtype=torch.float32)
    loaded.config._attn_implementation = "eager"
    weights = {name: value.double() for name, value in loaded.state_dict().items()}
    return Peer(build(checkpoint.architecture, loaded.config, weights).double())


def errors(got: Any, want: np.ndarray) -> np.ndarray:
    """The distance of each row from the truth; numbers that are alone in their row count by themselves."""
    difference = np.asarray(got).astype(np.float64) - want
    assert difference.shape == want.shape
    return np.sqrt((difference**2).sum(axis=-1)).ravel() if want.ndim > 2 else np.abs(difference).ravel()


def sizes(values: np.ndarray) -> tuple[float, float]:
    """Root mean square, and the 95th percentile."""
    return float(np.sqrt((values**2).mean())), float(np.quantile(values, 0.95))


@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_error_against_transformers(checkpoint: Checkpoint, kernels: str) -> None:
    ids = checkpoint.ids(ROWS, LENGTH, "float32")
    model = checkpoint.load(kernels, "float32")
    want = truth_of_rounded_weights(checkpoint)(ids, output_hidden_states=True)
    theirs = float32_peer(checkpoint.folder, checkpoint.architecture)(ids, output_hidden_states=True)
    got = model(ids, output_hidden_states=True)
    outputs = [name for name in OUTPUTS if getattr(want, name, None) is not None]
    pairs = {name: (getattr(got, name), getattr(theirs, name), getattr(want, name)) for name in outputs}
    pairs |= {
        f"hidden_states[{i}]": (got.hidden_states[i], theirs.hidden_states[i], want.hidden_states[i])
        for i in range(1, len(want.hidden_states))
    }
    assert len(pairs) >= 2
    for name, (ours, others, true) in pairs.items():
        assert np.asarray(ours).dtype == np.float32
        for what, mine, its in zip(
            ("rms", "95 %"), sizes(errors(ours, true)), sizes(errors(others, true)), strict=True
        ):
            assert 0 < mine <= ALLOWED * its, f"{name}: {what} error {mine:.2e}, transformers' is {its:.2e}"
