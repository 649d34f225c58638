"""The command line: see the package's docstring."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PACKAGE = "transformers_tests"
FROM_CHECKOUT = (
    "models/diffllama/test_modeling_diffllama.py",
    "generation/test_logits_process.py",
    "generation/test_stopping_criteria.py",
    "generation/test_streamers.py",
    "utils/test_modeling_rope_utils.py",
)
"""Files that transformers' repository has and its source distribution lacks."""
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {'num_labels': 5, 'problem_type': 'regression'}\n",
    "fixtures/sample_text.txt": "A first line of text.\n\nA second line, and one of 日本語.\n",
}
"""What the source distribution's tests import or read of files that are not in it.

The config's arguments have no dtype, which must be an object of torch there.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity.transformers_suite", description=__doc__)
    parser.add_argument("--tests", type=Path, help="the folder tests of a checkout, instead of the source distribution")
    parser.add_argument("--failures", type=Path, help="write what failed here, with the last line of each error")
    parser.add_argument("-k", default="", help="run the tests that match, as in pytest")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        pip("install", "--target", str(work / "libraries"), "parameterized")
        tests = args.tests or source_distribution(work)
        outcomes = {peer: run(work, tests, peer, args.k) for peer in ("transformers", "refdiff")}
    return report(outcomes["transformers"], outcomes["refdiff"], args.failures)


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments], check=True)


def source_distribution(work: Path) -> Path:
    """Download the one of the installed release, and return its folder of tests."""
    import transformers

    pip("download", "--no-deps", "--no-binary", ":all:", "-d", str(work), f"transformers=={transformers.__version__}")
    (archive,) = work.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(work / "source", filter="data")
    (tests,) = work.glob("source/*/tests")
    return tests


def rewrite(source: str) -> str:
    """Import from `border.py` what tests import from transformers and refdiff serves."""
    from tests.parity.transformers_suite.border import SUBJECTS

    class Imports(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
            if node.level or (node.module or "").partition(".")[0] != "transformers":
                return node
            ours = [name for name in node.names if SUBJECTS.fullmatch(name.name)]
            theirs = [name for name in node.names if name not in ours]
            modules = {"tests.parity.transformers_suite.border": ours, node.module: theirs}
            return [ast.ImportFrom(module, names, level=0) for module, names in modules.items() if names]

    return ast.unparse(ast.fix_missing_locations(Imports().visit(ast.parse(source))))


def run(work: Path, tests: Path, peer: str, selected: str) -> dict[str, tuple[str, str]]:
    """Run the tests in a process, on transformers itself or on refdiff, and return each one's outcome and reason."""
    folder = work / peer / PACKAGE
    shutil.copytree(tests, folder, ignore=shutil.ignore_patterns("fixtures/*/*"))
    for name, text in STAND_INS.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(HERE / "cases.py", folder / "test_cases.py")
    files = [folder / "test_cases.py", *(folder / name for name in FROM_CHECKOUT if (folder / name).exists())]
    for path in folder.rglob("*.py"):
        (path.parent / "__init__.py").touch()
        if peer == "refdiff":
            path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
    record = work / f"{peer}.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(work / "libraries")]),
        "SUITE_TOKENIZERS": json.dumps(tokenizers(work)),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "tests.parity.transformers_suite.record", str(record), "-k", selected]
    process = subprocess.run([*command, *map(str, files)], env=environment, cwd=folder.parent, capture_output=True)
    if not record.exists():
        raise SystemExit(f"the tests did not run on {peer}:\n{process.stdout.decode()}\n{process.stderr.decode()}")
    found: dict[str, tuple[str, str]] = json.loads(record.read_text(encoding="utf-8"))
    return found


def tokenizers(work: Path) -> dict[str, str]:
    """Write a tokenizer of each kind once, and return the folders."""
    import transformers

    from tests.generation.trained_tokenizers import KINDS

    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<|x|>"}
    folders = {kind: work / "tokenizers" / kind for kind in KINDS}
    for kind, folder in folders.items():
        if not folder.exists():
            made = transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), **special)
            made.save_pretrained(folder)
    return {kind.title().replace("_", ""): str(folder) for kind, folder in folders.items()}


def exceptions() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Yield each reason with the pattern of the tests that it excuses."""
    table = tomllib.loads((HERE / "exceptions.toml").read_text(encoding="utf-8"))
    for reason, patterns in table.items():
        yield reason, re.compile("|".join(patterns))


def report(baseline: dict[str, Any], found: dict[str, Any], failures: Path | None) -> int:
    """Print the table, and return 1 if a test failed that has no exception, or an exception has no test."""
    possible = [name for name, (outcome, _) in baseline.items() if outcome == "passed"]
    reasons = dict(exceptions())
    excused, unexplained, lines = dict.fromkeys(reasons, 0), [], []
    groups: dict[str, list[int]] = {}
    for name in possible:
        outcome, error = found.get(name, ("missing", "was not collected"))
        counts = groups.setdefault(name.partition("::test_")[0], [0, 0, 0])
        counts[0] += outcome == "passed"
        counts[1] += 1
        if outcome == "passed":
            continue
        reason = next((text for text, pattern in reasons.items() if pattern.search(name)), None)
        lines.append(f"{name}: {error}" + (f" [{reason}]" if reason else ""))
        if reason is None:
            unexplained.append(f"{name}: {error}")
        else:
            counts[2] += 1
            excused[reason] += 1
    print(f"{'tests':60} passed    of  excused")
    for group, (passed, of, with_reason) in groups.items():
        print(f"{group:60} {passed:6} {of:5} {with_reason:8}")
    print(f"not counted: {len(baseline) - len(possible)} that transformers itself skips or fails here\n")
    for reason, count in excused.items():
        print(f"{count:4} {reason}")
    print("", *(f"NOT EXCUSED  {line}" for line in unexplained), sep="\n")
    if failures is not None:
        failures.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(bool(unexplained) or not all(excused.values()))


if __name__ == "__main__":
    sys.exit(main())
