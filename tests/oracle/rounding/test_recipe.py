"""What a recipe may say."""

from __future__ import annotations

import pytest

from refdiff.oracle import Recipe


@pytest.mark.parametrize(
    ("name", "u"), [("float32", 2.0**-24), ("tf32", 2.0**-24), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)]
)
def test_names_of_recipes(name: str, u: float) -> None:
    recipe = Recipe.of(name)
    assert recipe.u == u
    assert (recipe.matmul == "tf32") == (name == "tf32")
    assert Recipe(**recipe.to_dict()) == recipe
    assert Recipe.of(recipe) is recipe
    assert Recipe.of(recipe, tanh="approx").tanh == "approx"
    assert Recipe.of(recipe, tanh="approx").tanh_error == 2.0**-11
    assert Recipe("float32", matmul="bfloat16").name == "float32 matmul=bfloat16"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"storage": "float64"}, "storage: got 'float64', expected one of float32, bfloat16, float16"),
        ({"storage": "bf16", "p": "fp16"}, r"p: got 'float16', expected one of bfloat16, float32 \(the storage"),
        ({"storage": "tf32"}, "storage: got 'tf32'.*storage='float32', matmul='tf32'"),
        ({"storage": "bf16", "accumulate": "fp16"}, "accumulate: got 'float16', expected one of bfloat16, float32"),
    ],
)
def test_refuses_what_no_kernel_does(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tf23", "; did you mean 'tf32'"),
        ("float64", ". float64 is what the truth is computed in"),
        ("int8", "float16$"),
    ],
)
def test_a_typo_in_a_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"no recipe is called '{name}': there are float32, tf32, .*{hint}"):
        Recipe.of(name)


def test_fields_as_json_has_them() -> None:
    assert Recipe.of({"storage": "bf16", "tanh": "approx"}) == Recipe("bfloat16", tanh="approx")
    with pytest.raises(ValueError, match=r"'matmull' is no field of a Recipe, did you mean 'matmul'\? there are"):
        Recipe.of({"matmull": "tf32"})
