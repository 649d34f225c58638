"""Mistakes of several signal heads that share a noise head and keys, as in Motif-3: which head is which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.catalogue import Call
from refdiff.oracle.spec import Spec

Numpy = np.ndarray[Any, Any]


def _of_every_head(call: Call) -> tuple[Numpy, int] | None:
    """softmax(q Kᵀ) V of every query head, (B, H, T, e), in the order of q, and how many signals share a noise.

    Signals that share one come with the same second query. None where each has its own, or the maps have other keys.
    """
    h = call.q1.shape[1]
    shared = np.all(call.q2 == call.q2[:, :1], axis=(0, 2, 3))
    r = h if shared.all() else int(np.argmin(shared))
    one_mask = all(x is None or x.ndim < 3 or x.shape[-3] == 1 for x in (call.mask, call.bias))
    if r == 1 or h % r or not one_mask or call.k1.shape[1] != h or not np.array_equal(call.k1, call.k2):
        return None

    def in_groups(signals: Numpy, noises: Numpy) -> Numpy:
        B, _, *rest = signals.shape
        both = [signals.reshape(B, h // r, r, *rest), noises[:, ::r, None]]
        return np.concatenate(both, axis=2).reshape(B, h // r * (r + 1), *rest)

    q, k, v = in_groups(call.q1, call.q2), in_groups(call.k1, call.k2), in_groups(call.v, call.v)
    return call(q1=q, k1=k, q2=q, k2=k, v=v, lambda_=np.zeros(())), r


def _signals_first(call: Call) -> Any:
    found = _of_every_head(call)
    if found is None:
        return call()
    (heads, r), h = found, call.q1.shape[1]
    return heads[:, :h] - call.lambda_ * np.repeat(heads[:, h:], r, axis=1)


def _exchanged(call: Call) -> Any:
    found = _of_every_head(call)
    if found is None or found[0].shape[1] != call.q1.shape[2]:
        return call()
    heads, r = np.swapaxes(found[0], 1, 2), found[1]
    B, H, T, e = heads.shape
    groups = heads.reshape(B, H // (r + 1), r + 1, T, e)
    signals, noises = groups[:, :, :r].reshape(B, -1, T, e), groups[:, :, r]
    return signals - call.lambda_ * np.repeat(noises, r, axis=1)


def _noise_first(spec: Spec, inputs: Inputs) -> Inputs | None:
    if spec.ratio == 1 or spec.pairing != "interleaved" or "q" not in inputs:
        return None
    B, H, *rest = inputs["q"].shape
    groups = inputs["q"].reshape(B, -1, spec.ratio + 1, *rest)
    return {**inputs, "q": np.roll(groups, -1, axis=2).reshape(B, H, *rest)}


def _wrong(name: str, what: str, axis: str, wrong: Callable[[Call], Any]) -> Deviation:
    return Deviation.of(Mistake(name, what, "diff_attention", axis, wrong))


GROUP_DEVIATIONS: tuple[Deviation, ...] = (
    _wrong("all_signals_first", "The first h heads of the attention taken for the signals and the rest for the noises, "
           "where each group has its noise beside it.", "ratio", _signals_first),
    _wrong("heads_and_tokens_exchanged", "(B, T, H, e) of the attention taken for (B, H, T, e) where T is H, as by "
           "code that tells the two apart by their sizes.", "concat", _exchanged),
    Deviation("noise_before_its_signals", "The first head of each group taken for its noise, where it is the last.",
              "ratio", arrays=_noise_first),
)  # fmt: skip
