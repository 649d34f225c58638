#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.5.1", "packaging"]
# ///
"""Everything that must hold before a change lands, one session for each step.

`nox -l` lists the sessions, `nox -s parity` runs one, and `bash .ci/run` runs them all. What follows `--` goes to
pytest: `nox -s slow -- tests/model`.
"""

import configparser
import os
import re
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["readme", "lint"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
GROUPS = nox.project.load_toml("pyproject.toml")
WORKERS = str(min((os.cpu_count() or 1) + 1, 4))
"""One more than there are cores: tests wait for the processes that they start."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Of NumPy, where several processes share the cores."""
ROOT = Path(__file__).parent


def install(session: nox.Session, extras: str, *others: str) -> None:
    """Install refdiff with extras. `REFDIFF_WHEEL` is built already: two builds of one tree disturb each other."""
    session.install("--no-compile", f"{os.environ.get('REFDIFF_WHEEL', '.')}[{extras}]", *others)


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(GROUPS, name)


def pytest_options(session: nox.Session) -> str:
    """The options that leave the results in a file for `.ci/summary.py`."""
    return f"--durations=15 -p no:cacheprovider --junitxml={session.cache_dir / session.name}.xml"


def pytest(session: nox.Session, *arguments: str, parallel: bool = False, **env: str) -> None:
    """Run pytest with temporary folders of its own: it tidies those of all runs that share one."""
    if parallel:
        arguments, env = ("-n", WORKERS, "--dist", "worksteal", *arguments), ONE_THREAD | env
    env |= {"PYTEST_ADDOPTS": pytest_options(session), "PYTEST_DEBUG_TEMPROOT": session.create_tmp()}
    session.run("python", "-m", "pytest", *arguments, *session.posargs, env=env)


@nox.session(venv_backend="venv")
def readme(session: nox.Session) -> None:
    """The README's own commands for the tests, without torch, and what they cover."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.search(r"<!-- test commands -->\n```sh\n(.*?)```\n<!-- end -->", text, re.DOTALL)
    if commands is None:
        session.error("README.md has no test commands between its markers")
    session.install("pytest-cov>=7.0")
    env = {
        "COVERAGE_FILE": str(session.cache_dir / "coverage"),
        # coverage doubles the time of what it watches: few examples of each property, of which `slow` tries 200
        "REFDIFF_HYPOTHESIS": "few",
        "PYTEST_ADDOPTS": f"--cov --cov-report= --cov-fail-under=0 {pytest_options(session)}",
        "PYTEST_DEBUG_TEMPROOT": session.create_tmp(),
        "PYTEST_XDIST_AUTO_NUM_WORKERS": WORKERS,
    }
    session.run("bash", "-euxo", "pipefail", "-c", commands[1], env=ONE_THREAD | env, external=True)
    session.run("python", "-c", "import torch", success_codes=[1], silent=True)
    session.run("python", "-m", "coverage", "report", env=env)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The quick tests under one Python."""
    install(session, "test")
    pytest(session, parallel=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    install(session, "test", *group("dev"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "-m", "mypy")


@nox.session
def slow(session: nox.Session) -> None:
    """The slow tests, and every property with 200 examples; what is marked nightly has a workflow of its own."""
    install(session, "test")
    chosen = ("-m", "(slow or hypothesis) and not nightly", "-o", "junit_logging=system-out")
    own = "tests/test_notebooks.py::test_it_runs_alone_and_gives_what_is_stored"  # the session `notebooks` runs it
    pytest(session, *chosen, "--deselect", own, parallel=True, REFDIFF_HYPOTHESIS="ci")


@nox.session
def parity(session: nox.Session) -> None:
    """Parity with torch and transformers, and public kernels as the oracle judges them."""
    # one release of transformers, whose names are compared
    install(session, "parity", *group("implementations"), "transformers==5.25.*")
    # reads test vectors; of what it depends on, flashinfer-python with its libraries of CUDA is not needed for that
    session.install("apache-tvm-ffi>=0.1.2", "docstring-parser>=0.16", "pydantic>=2")
    session.install("--no-deps", "flashinfer-bench>=0.1.2")
    session.run("python", "-c", "import torch, transformers; print(torch.__version__, transformers.__version__)")
    pytest(session, "-m", "not nightly", "tests/parity", parallel=True)


@nox.session
def mutants(session: nox.Session) -> None:
    """A sample of small changes of the source, each of which a test must notice; the commit decides which.

    A few dozen scatter around the score of all, which the guide to testing has.
    """
    install(session, "test")
    seed = session.run("git", "rev-parse", "HEAD", external=True, silent=True, success_codes=[0, 128]) or "none"
    sample = ("python", "-m", "tests.mutation", "--jobs", "2", "--seed", seed.strip())
    model = ("--path", "refdiff/model", "--path", "refdiff/generation/sampling.py")
    session.run(*sample, "--path", "refdiff/layers", "--sample", "60", "--at-least", "90", env=ONE_THREAD)
    session.run(*sample, *model, "--sample", "40", "--at-least", "80", env=ONE_THREAD)


@nox.session
def notebooks(session: nox.Session) -> None:
    """The notebooks in order, each in a kernel of its own, with what they need and no more."""
    install(session, "notebooks")
    session.run("python", "notebooks/build.py", "--check", "--installed")


@nox.session
def reference(session: nox.Session) -> None:
    """The site in build/reference: warnings are errors, links lead somewhere, its code runs."""
    install(session, "docs")
    session.run("python", "notebooks/reference/build.py", "-o", "build/reference")


@nox.session
def browser(session: nox.Session) -> None:
    """Pages, and refdiff under Pyodide, in Chromium and in Node; `apt-get install chromium npm ca-certificates`."""
    install(session, "docs")
    env = {"REFERENCE": str(ROOT / "build" / "reference")} if (ROOT / "build" / "reference").exists() else {}
    pyodide = session.cache_dir / "pyodide"
    session.run("python", "-m", "tests.browser.pyodide", str(pyodide), success_codes=[0, 3])  # 3: not on this index
    if pyodide.exists():
        pytest(session, "tests/browser", PYODIDE=str(pyodide), **env)
    else:
        session.warn("NOT RUN: refdiff under Pyodide, which the package index does not have")
        without = [f"--ignore=tests/browser/test_{name}.py" for name in ("pyodide", "tryout")]
        pytest(session, "tests/browser", *without, **env)


@nox.session
def packages(session: nox.Session) -> None:
    """A wheel and an sdist; the wheel in an empty environment, and its suite for authors of kernels."""
    session.install("build")
    dist = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", dist, ".", silent=True)
    (wheel,), (sdist,) = Path(dist).glob("*.whl"), Path(dist).glob("*.tar.gz")
    if "/tests/" in session.run("tar", "tzf", str(sdist), external=True, silent=True):
        session.error("the sdist has tests: they need the notebooks, the README and .ci, which it has not")
    session.install(str(wheel))
    smoke(session)
    session.install(f"{wheel}[oracle]")
    kernel = (
        "from refdiff import oracle\n\n\n"
        "def kernel(spec, inputs):\n"
        "    return oracle.truth(spec, inputs).out.astype(inputs['q'].dtype), None\n"
    )
    (Path(dist) / "mine.py").write_text(kernel, encoding="utf-8")
    with session.chdir(dist):
        suite = ("--refdiff-kernel", "mine:kernel", "--refdiff-profiles", "natural,tiny_values")
        session.run("python", "-m", "pytest", *suite)


def smoke(session: nox.Session) -> None:
    """Use the installed package from a folder without the source."""
    session.run("python", "-m", "pip", "check")
    with session.chdir(session.create_tmp()):
        session.run("rm", "-rf", "tiny", external=True)
        session.run("python", "-P", str(ROOT / ".ci" / "smoke.py"), str(Path(session.bin, "refdiff")), "tiny")


@nox.session(python=PYTHONS)
def lowest(session: nox.Session) -> None:
    """The lowest version of every dependency in setup.cfg, from wheels."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    bounds = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": str(session.python)}):
            (bound,) = requirement.specifier
            if bound.operator != ">=":
                session.error(f"{requirement}: expected one bound, >=")
            bounds[requirement.name] = f"{requirement.name}=={bound.version}"
    session.install("--only-binary", ":all:", *bounds.values())
    session.install(os.environ.get("REFDIFF_WHEEL", "."), *bounds.values())
    smoke(session)


@nox.session(python=PYTHONS)
def installed(session: nox.Session) -> None:
    """The wheel under one Python: arguments, files, text and processes; what layers compute depends on NumPy alone."""
    install(session, "test")
    folders = ("cli", "hub", "generation", "model/weights", "bench", "test_python_interface.py")
    chosen = ("-m", "not slow and not nightly and not hypothesis", "-o", "pythonpath=")
    pytest(session, *chosen, *(f"tests/{name}" for name in folders), parallel=True, PYTHONSAFEPATH="1")


if __name__ == "__main__":
    nox.main()
