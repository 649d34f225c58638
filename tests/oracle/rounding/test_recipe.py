"""What a recipe may say."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Recipe


def test_what_is_not_said_is_the_storage_type() -> None:
    recipe = Recipe("bf16")
    assert recipe == Recipe("bfloat16", p="bfloat16", o="bf16", lam="bfloat16", rope="bf16")
    assert (recipe.storage, recipe.p, recipe.qk, recipe.norm) == ("bfloat16", "bfloat16", "float32", "float32")


@pytest.mark.parametrize(
    ("name", "u"), [("float32", 2.0**-24), ("tf32", 2.0**-24), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)]
)
def test_names_of_recipes(name: str, u: float) -> None:
    recipe = Recipe.of(name)
    assert recipe.u == u
    assert (recipe.matmul == "tf32") == (name == "tf32")
    assert Recipe(**recipe.to_dict()) == recipe
    assert Recipe.of(recipe) is recipe
    assert Recipe.of(recipe, exp="ex2approx").exp == "ex2approx"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"storage": "float64"}, "storage is 'float64', but must be one of float32, bfloat16, float16"),
        ({"storage": "bf16", "p": "fp16"}, r"p is 'float16', but must be one of bfloat16, float32 \(the storage"),
        ({"storage": "float32", "qk": "bf16"}, "qk is 'bfloat16', but must be one of float32"),
        ({"storage": "tf32"}, "storage is 'tf32'.*storage='float32', matmul='tf32'"),
        ({"storage": ["bf16"]}, "storage is .'bf16'., but must be one of"),
        ({"storage": "bf16", "accumulate": "fp16"}, "accumulate is 'float16', but must be one of bfloat16, float32"),
        ({"matmul": "tf64"}, "matmul is 'tf64'"),
        ({"exp": "fast"}, "exp 'fast'"),
        ({"storage": "bf16", "matmul": "tf32"}, "storage is 'bfloat16'"),
    ],
)
def test_refuses_what_no_kernel_does(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tf23", "; did you mean 'tf32'"),
        ("fp23", "; did you mean 'fp32'"),
        ("bfloat61", "; did you mean 'bfloat16'"),
        ("float64", ". float64 is what the truth is computed in"),
        ("int8", "float16$"),
        ("int32", "float16$"),
    ],
)
def test_a_typo_in_a_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"no recipe is called '{name}': there are float32, tf32, .*{hint}"):
        Recipe.of(name)


def test_a_type_stands_for_its_name() -> None:
    for name in ("float32", "float16"):
        assert Recipe.of(getattr(np, name)) == Recipe.of(np.dtype(name)) == Recipe(name)
    assert Recipe.of(ml_dtypes.bfloat16) == Recipe("bfloat16")
    with pytest.raises(ValueError, match="no recipe is called 'int8'"):
        Recipe.of(np.int8)


def test_fields_as_json_has_them() -> None:
    assert Recipe.of({"storage": "bf16", "exp": "ex2approx"}) == Recipe("bfloat16", exp="ex2approx")
    with pytest.raises(ValueError, match=r"'matmull' is no field of a Recipe, did you mean 'matmul'\? there are"):
        Recipe.of({"matmull": "tf32"})
