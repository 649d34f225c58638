#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.2"]
# ///
"""The commands of .github/CONTRIBUTING.md, each in an environment of its own: `nox -s tests lint reference`."""

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|virtualenv"


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the quick tests; for some of them, `nox -s tests-3.13 -- tests/layers`."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "auto", "--maxprocesses", "4"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install(".[test]", *nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "dev"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "-m", "mypy")


@nox.session(default=False)
def reference(session: nox.Session) -> None:
    """Build the reference pages into build/reference."""
    session.install(".[docs]")
    session.run("python", "notebooks/reference/build.py")


if __name__ == "__main__":
    nox.main()
