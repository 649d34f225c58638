"""Check kernels of attention by pytest, which finds these options and the fixture where refdiff is installed.

`pytest --refdiff-kernel package.module:function` judges a kernel on all cases (`refdiff.oracle.conformance`). In a
test of your own, the fixture compares what a kernel returned with the truth:

    def test_mine(attention_oracle):
        q, k, v = ...
        attention_oracle.assert_close(attend(q, k, v), {"q": q, "k": k, "v": v}, spec="attention", recipe="bfloat16")

`-m refdiff` selects these tests, and those of the kernel.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from refdiff.oracle.cases.fixed import Case
    from refdiff.oracle.rounding.recipe import Recipe
    from refdiff.oracle.spec import Spec
    from refdiff.oracle.verdict.verdict import Verdict

SUITE = str(Path(__file__).parent / "oracle" / "conformance.py")
SECTION = pytest.StashKey[str]()
"""What the report of a failed test shows in a section of its own."""

OPTIONS = {
    "kernel": ("MODULE:FUNCTION", "judge this function on all cases"),
    "spec": (
        "SPEC",
        "what the kernel computes: a preset, and fields that differ, such as "
        "hf_diffllama,query_heads=8,key_heads=4,window=64; or a JSON object (hf_diffllama)",
    ),
    "recipe": (
        "RECIPE",
        "where the kernel rounds: float32, tf32, bfloat16 or float16, and fields that differ, such as "
        "bfloat16,lam=float32; or a JSON object (float32)",
    ),
    "profiles": ("NAMES", "kinds of inputs, separated by commas (all of them)"),
    "sizes": ("SIZES", "additional cases, batch x queries x keys, such as 2x512x512,8x1x4096 (none)"),
    "seed": ("N", "seed of the inputs, a whole number from 0 (0)"),
    "bitwise": ("NAMES", "require equal bits: batch, chunk, page or packing, separated by commas (none)"),
    "save": ("FOLDER", "write the first failing case there, for refdiff check (nowhere)"),
}
FLAGS = {
    "allow-declined": "pass a kernel that declines more than half of the cases",
    "allow-missing-gradients": "pass a kernel that takes dout and leaves out gradients of λ, sinks, weights and gates",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that begin with `--refdiff-`."""
    group = parser.getgroup("refdiff", "kernels of attention (refdiff)")
    for name, (metavar, text) in OPTIONS.items():
        group.addoption(f"--refdiff-{name}", metavar=metavar, help=text)
    for name, text in FLAGS.items():
        group.addoption(f"--refdiff-{name}", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker, and with a kernel the tests of `refdiff.oracle.conformance`."""
    config.addinivalue_line("markers", "refdiff: judges a kernel of attention by refdiff")
    if config.getoption("refdiff_kernel"):
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args.clear()
        config.args.append(SUITE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the fixture."""
    for item in items:
        if "attention_oracle" in getattr(item, "fixturenames", ()):
            item.add_marker("refdiff")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Show the verdict and the diagnosis of a failed comparison in a section of the report."""
    report: Any = yield
    if call.when == "call" and report.failed and (text := item.stash.get(SECTION, "")):
        report.sections.append(("refdiff", text))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write a table of the cases into the summary of a job on GitHub."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if not page or not config.getoption("refdiff_kernel"):
        return
    counts: dict[str, Counter[str]] = {}
    for status in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(status, ()):
            _, _, case = report.nodeid.partition("[")
            if case:
                counts.setdefault(case.partition("-")[0].rstrip("]"), Counter())[status] += 1
    lines = [f"### refdiff: {config.getoption('refdiff_kernel')}", "", "| cases | passed | failed | declined |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {name} | {n['passed']} | {n['failed']} | {n['skipped']} |" for name, n in counts.items()]
    errors = terminalreporter.stats.get("error", ())
    lines += ["| none: the error below | 0 | 0 | 0 |"] if errors and not counts else []
    wrong = [*errors, *terminalreporter.stats.get("failed", ())]
    lines += [f"\n```text\n{report.longreprtext}\n```" for report in wrong[:1]]
    with Path(page).open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, ""]))


@dataclass(frozen=True)
class AttentionOracle:
    """The oracle in a test; `spec` and `recipe` are those of the command line where a call gives none."""

    request: pytest.FixtureRequest

    def cases(self, profile: str = "discriminating", *, spec: Spec | str | None = None, **options: Any) -> list[Case]:
        """Return the cases of a profile, as `refdiff.oracle.cases` does."""
        from refdiff import oracle

        return oracle.cases(profile, spec=self._spec(spec), **options)

    def check(
        self, actual: Any, inputs: Mapping[str, Any], *, spec: Spec | str | None = None,
        recipe: Recipe | str | None = None, dout: Any = None,
    ) -> Verdict:  # fmt: skip
        """Return the verdict on what a kernel computed, as `refdiff.oracle.check` does."""
        from refdiff import oracle

        return oracle.check(actual, self._spec(spec), inputs, recipe=self._recipe(recipe), dout=dout)

    def assert_close(
        self, actual: Any, inputs: Mapping[str, Any], *, spec: Spec | str | None = None,
        recipe: Recipe | str | None = None, dout: Any = None, diagnose: bool = True,
    ) -> None:  # fmt: skip
        """Fail the test unless the check passes; the report has the verdict, the place and the name of the mistake.

        The arguments are those of `refdiff.oracle.assert_close`.

        Raises:
            AssertionError: the check did not pass.
        """
        from refdiff import oracle

        __tracebackhide__ = True
        options: dict[str, Any] = {"recipe": self._recipe(recipe), "dout": dout, "diagnose": diagnose}
        try:
            oracle.assert_close(actual, self._spec(spec), inputs, **options)
            return
        except AssertionError as error:
            text = str(error)
        self.request.node.stash[SECTION] = text
        verdict, *lines = text.splitlines()
        names = [line for line in lines if line.startswith("diagnosis: ")]
        raise AssertionError("; ".join([verdict.partition(";")[0], *names]))

    def _spec(self, spec: Spec | str | None) -> Spec | str:
        if spec is not None:
            return spec
        text = self.request.config.getoption("refdiff_spec")
        if text is None:
            raise ValueError("spec: got None, expected a Spec or a preset's name, here or as --refdiff-spec")
        from refdiff.oracle.inputs.resolve import resolve_spec

        return resolve_spec(text)

    def _recipe(self, recipe: Recipe | str | None) -> Recipe | str | None:
        return self.request.config.getoption("refdiff_recipe") if recipe is None else recipe


@pytest.fixture
def attention_oracle(request: pytest.FixtureRequest) -> AttentionOracle:
    """`check`, `assert_close` and `cases` of refdiff's oracle, for kernels of attention."""
    return AttentionOracle(request)
