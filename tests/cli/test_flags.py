"""Numbers with limits."""

from __future__ import annotations

import argparse

import pytest

from refdiff.cli.flags import Number
from refdiff.cli.terminal import in_flags


@pytest.mark.parametrize("value", [True, "3", None, 2.5, [1], float("inf"), float("nan")])
def test_a_field_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"got .*, expected a whole number of at least 0"):
        Number(int, 0).check(value)


def test_a_number_of_any_length_is_compared() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of at least 0 and at most 1"):
        Number(float, 0, 1).check(10**400)
    with pytest.raises(argparse.ArgumentTypeError, match=r"got 10{36}\.\.\., expected a whole number"):
        Number(int, 0).check(10**400)
    with pytest.raises(argparse.ArgumentTypeError, match=r"at least 0 and at most 9223372036854775807 \(0 = off"):
        Number(int, 0, off="0 = off").check(2**63)
    assert Number(int, 0).check(2**63 - 1) == 2**63 - 1
    assert type(Number(int, 0).check(3.0)) is int


def test_messages_name_flags_instead_of_arguments() -> None:
    assert in_flags("run once without local_files_only and X") == "run once without --offline and X"
    assert in_flags("choose another disk with cache_dir or HF_HOME") == "choose another disk with HF_HOME"
