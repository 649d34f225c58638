"""`refdiff completion`: the scripts, read by the shells where there are any."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.cli.parser import COMMANDS
from refdiff.model.variants import VARIANTS

Capture = pytest.CaptureFixture[str]


def _script(shell: str, capsys: Capture) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["refdiff", ""], set(COMMANDS)),
        (["refdiff", "tr"], {"train", "trace"}),
        (["refdiff", "generate", "--backend", ""], {"numpy", "cupy"}),
        (["refdiff", "golden", "export", ""], set()),  # files
        (["refdiff", "inspect", ""], {"bundled", "my folder"}),
        (["refdiff", "check", "--spec", "ms"], {"ms_v1", "ms_v1_naive"}),
        (["refdiff", "golden", "export", "x", "--profile", "w"], set()),  # not the former names
        (["refdiff", "generate", "--dtype", "=", "fl"], {"float16", "float32", "float64"}),
    ],
)
def test_bash(
    typed: list[str], expected: set[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my folder").mkdir()
    words = " ".join(f"'{word}'" for word in typed)
    script = f"{_script('bash', capsys)}\nCOMP_WORDS=({words})\nCOMP_CWORD={len(typed) - 1}\n_refdiff\n"
    done = subprocess.run(["bash", "-c", script + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True)
    assert done.stderr == ""
    assert set(done.stdout.splitlines()) == (expected or {""})


def test_zsh_loads_the_script_of_bash(capsys: Capture) -> None:
    assert _script("zsh", capsys) == "autoload -U +X bashcompinit && bashcompinit\n" + _script("bash", capsys)


def test_fish(capsys: Capture) -> None:
    lines = _script("fish", capsys).splitlines()
    assert [line for line in lines if "__fish_use_subcommand" in line and "-a train " in line]
    (found,) = [line for line in lines if "seen_subcommand_from convert" in line and "-l to" in line]
    assert f"-x -a '{' '.join(VARIANTS)}'" in found
    assert (
        "complete -c refdiff -n '__fish_seen_subcommand_from golden' -f -a 'export verify' -d 'export or verify'"
        in lines
    )
    assert not [line for line in lines if "--" in line.partition(" -d ")[0]]
