"""The selftest of plain attention: its problems, and one of them judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refdiff.oracle import Recipe
from tests.oracle.selftest import plain
from tests.oracle.selftest.one_case import one_case
from tests.oracle.selftest.table import Table


@pytest.mark.slow
def test_the_problems_have_what_is_plain_attention_s_own() -> None:
    problems = [setting for seed in range(3) for setting in plain.settings(seed)]
    names = {d.name for setting in problems for d in setting.deviations}
    assert names >= {
        *("key_heads_tiled", "no_softcap", "softcap_before_scale", "scores_scaled_by_sqrt_v_dim"),
        *("no_sinks", "sinks_scaled", "sinks_in_base_2", "sinks_set_to_zero", "sinks_by_key_head"),
        *(
            "window_one_too_short",
            "window_one_too_long",
            "scores_not_scaled",
            "last_page_lost",
            "sequences_not_separated",
        ),
    }
    assert all(setting.spec.is_plain for setting in problems)
    assert [setting.main for setting in problems] == 3 * [True, False, False]
    assert {setting.spec.sinks for setting in problems} == {True, False}


@pytest.mark.slow
def test_some_of_a_problem() -> None:
    main = plain.settings(1)[0]
    table = one_case(1, Recipe("bfloat16"), "natural", "bfloat16", (replace(main, deviations=main.deviations[::4]),))
    ours = table.total(rule="rows")
    assert ours.own_refused == 0, table.refusals
    assert ours.identifiable > 30
    assert ours.killed_identifiable >= 0.97 * ours.identifiable
    assert {key[0] for key in table.by_name} == {"forward", "backward", "lse"}


def test_the_command_fails_where_too_few_are_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def judged(killed: bool) -> None:
        def case(seed: int, recipe: Recipe, profile: str, name: str, problems: object) -> Table:
            asked.append((seed, profile, name))
            table = Table()
            table.counts[name, profile, "forward", "rows"].mutant(killed, identifiable=True, plain=True)
            return table

        monkeypatch.setattr(plain, "one_case", case)

    monkeypatch.setattr(plain, "settings", lambda seed: ())
    judged(killed=True)
    assert plain.main(["--recipes", "float32,tf32", "--seeds", "2", "--first-seed", "5"]) == 0
    assert "16 of 16 identifiable mutants killed" in capsys.readouterr().out
    assert asked[0] == (5, "natural", "float32")
    assert asked[-1] == (6, "tiles", "tf32")
    judged(killed=False)
    assert plain.main(["--recipes", "float32"]) == 1
