"""Flex attention of torch, as transformers calls it: its mask, and how it runs on a CPU."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FLEX = "flex_attention"
"""What transformers calls torch's flex attention."""


def implementation_of(attention: Any) -> str:
    """The attention implementation of transformers that a module has; "" where it is none of transformers."""
    return getattr(getattr(attention, "config", None), "_attn_implementation", None) or ""


@contextmanager
def uncompiled(implementation: str, device: Any) -> Iterator[None]:
    """Run flex attention uncompiled on a CPU, where torch would compile it for half a minute."""
    if implementation != FLEX or str(device) != "cpu":
        yield
        return
    with importlib.import_module("torch").compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
        yield


def block_mask(see: Any) -> Any:
    """The mask that flex attention takes, of a boolean tensor (B, 1, T, S): true where a query sees a key."""
    create = importlib.import_module("torch.nn.attention.flex_attention").create_block_mask
    B, _, T, S = see.shape
    return create(lambda b, _, t, s: see[b, 0, t, s], B=B, H=None, Q_LEN=T, KV_LEN=S, device=see.device)
