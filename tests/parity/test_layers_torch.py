"""Every case of every layer once more, on torch's CPU tensors through array-api-compat."""

from collections.abc import Callable
from typing import Any

import array_api_compat.torch
import numpy as np
import pytest
import torch

from refdiff import arrays, layers
from tests.layers.places import Case, Place, every_case

TORCH = Place("torch", array_api_compat.torch, torch.device("cpu"))


@pytest.mark.parametrize("case", every_case(), ids=lambda case: f"{case.layer.__name__}, {case}")
def test_any_backend(case: Case) -> None:
    case.check(TORCH)


def test_arrays() -> None:
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert arrays.namespace(x) is array_api_compat.torch
    assert arrays.device(x) == torch.device("cpu")
    assert arrays.to_numpy(x).tolist() == [[1.0, 2.0]]
    assert arrays.backend(array_api_compat.torch) is array_api_compat.torch
    assert arrays.from_numpy(arrays.to_numpy(x), array_api_compat.torch, torch.device("cpu")).dtype == torch.float32


def zeros(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.zeros(shape) for shape in shapes]


Q, K, V = (2, 6, 5, 11), (2, 3, 7, 11), (2, 3, 7, 13)
WRONG: list[tuple[Callable[..., Any], list[Any]]] = [
    (layers.embedding, [np.array([0]), np.zeros(7)]),
    (layers.embedding, [np.array([7]), np.zeros((7, 5))]),
    (layers.embedding, [np.array([-1]), np.zeros((7, 5))]),
    (layers.linear, zeros((2, 7), (7, 5))),
    (layers.linear, zeros((2, 5), (7, 5), (5,))),
    (layers.rms_norm, [*zeros((2, 5), (7,)), 1e-5]),
    (layers.softmax, [np.zeros((5, 7)), np.ones((7, 5), bool)]),
    (layers.padding_mask, zeros((5,))),
    (layers.packed_mask, zeros((5,))),
    (layers.rope_cos_sin, [np.zeros(5), [1.0], 1.0, np.float64]),
    (layers.rope, zeros((2, 3, 5, 14), (5, 7), (5, 7))),
    (layers.diff_lambda, [*zeros((5,), (5,), (5,), (7,)), 0.2]),
    (layers.cross_entropy, [np.zeros((2, 7)), np.array([0])]),
    (layers.cross_entropy, [np.zeros((2, 7)), np.array([0, 7])]),
    (layers.cross_entropy, [np.zeros((2, 7)), np.array([-1, 2])]),
    (layers.attention_weights, zeros(Q, (2, 4, 7, 11))),
    (layers.attention_weights, [*zeros(Q, K), np.ones((7, 5), bool)]),
    (layers.attention_weights, [*zeros(Q, K), None, np.ones((7, 5))]),
    (layers.diff_attention, zeros(Q, K, Q, K, (2, 3, 6, 13), ())),
    (layers.diff_attention, zeros(Q, K, Q, K, V, (5,))),
    (layers.value_pairs_hf, zeros(V)),
    (layers.diff_heads_hf, [*zeros(Q, K, V, ()), 0.2, 1e-5]),
]


@pytest.mark.parametrize(("layer", "args"), WRONG, ids=lambda x: x.__name__ if callable(x) else "")
def test_messages_are_those_for_numpy(layer: Callable[..., Any], args: list[Any]) -> None:
    with pytest.raises((ValueError, IndexError)) as here:
        layer(*args)
    with pytest.raises(here.type) as there:
        layer(*map(TORCH.put, args))
    assert str(there.value) == str(here.value)
