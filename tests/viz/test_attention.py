"""What is drawn is what the maps hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.model.outputs import ModelOutput
from refdiff.viz import AttentionMaps, maps_of, plot_attention
from tests.layers.places import NUMPY, STRICT, Place

from .conftest import render


def images(figure: Any) -> list[Any]:
    """The pictures of a figure without its color bar's, in the order of the axes."""
    return [axes.images[0] for axes in figure.axes if axes.get_label() != "<colorbar>"]


def words(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


@pytest.mark.parametrize(("layer", "pair"), [(1, 2), (None, None), (2, None), (None, 3)])
def test_three_maps_on_one_scale(maps: AttentionMaps, layer: int | None, pair: int | None) -> None:
    figure = plot_attention(maps, layer, pair)
    drawn = images(figure)
    assert len(drawn) == 3
    for image, name in zip(drawn, ("first", "second", "difference"), strict=True):
        np.testing.assert_array_equal(image.get_array(), maps.map(name, layer, pair))
        assert image.norm is drawn[0].norm
        assert image.get_interpolation() == "nearest"
    assert drawn[0].norm.vmin == -drawn[0].norm.vmax
    assert figure.get_suptitle() == maps.title(layer, pair)
    titles = [image.axes.get_title() for image in drawn]
    assert titles == ["A₁", "A₂", "A₁ − λ A₂"]
    for image in drawn:
        assert words(image.axes.get_xticklabels()) == words(image.axes.get_yticklabels()) == list(maps.tokens)


def test_fewer_queries_than_keys(maps: AttentionMaps) -> None:
    assert maps.second is not None
    late = AttentionMaps(
        maps.tokens, maps.first[:, :, 4:], maps.second[:, :, 4:], maps.difference[:, :, 4:], maps.lambdas, maps.starts
    )
    axes = images(plot_attention(late))[1].axes
    assert words(axes.get_yticklabels()) == ["t4", "t5", "t6"]
    assert words(axes.get_xticklabels()) == list(maps.tokens)


@pytest.mark.parametrize(
    ("variant", "place"),
    [
        pytest.param("hf", NUMPY, marks=pytest.mark.slow),
        ("hf", STRICT),
        ("paper", NUMPY),
        ("v2", STRICT),
        ("plain", STRICT),
    ],
    ids=str,
)
def test_of_a_models_output_the_first_row(outputs: Callable[[str], Any], variant: str, place: Place) -> None:
    names = ("attentions", "differential_attentions", "lambdas")
    out = ModelOutput(**{name: tuple(map(place.put, getattr(outputs(variant), name))) for name in names})
    words_ = [f"w{i}" for i in range(7)]
    right = maps_of(outputs(variant), words_, variant=variant)
    figure = plot_attention(out, tokens=words_, variant=variant)
    made, expected = images(figure), images(plot_attention(right))
    assert len(made) == len(expected)
    for image, same in zip(made, expected, strict=True):
        np.testing.assert_array_equal(image.get_array(), same.get_array())
    assert words(made[-1].axes.get_xticklabels()) == words_
    render(figure)
    (axes, *_) = (image.axes for image in images(plot_attention(out, variant=variant)))
    assert words(axes.get_xticklabels()) == list("0123456")
