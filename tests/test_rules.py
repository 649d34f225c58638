"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refdiff import layers
from tests.quickness import start_seconds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "refdiff"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = sorted((PACKAGE / "layers").glob("[!_]*.py"))

# A file imports only from those before it: the tree is the path of the data, and the order of imports.
ORDER = (
    "messages",
    "errors",
    "files",
    "arrays",
    "cluster",
    "bundled",
    "hub",
    "layers",
    "backends",
    "model",
    "convert",
    "generation",
    "training",
    "pipelines",
    "oracle",
    "viz",
    "exercises",
    "bench",
    "cli",
)
HEADINGS = ("Equation:", "Used as:", "Shapes:", "Precision:", "Raises:")


def _names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _files(*patterns: str) -> Iterator[Path]:
    """The project's own files, without what builds and environments leave in the folder."""
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            parts = path.relative_to(ROOT).parts
            if not any(
                p in ("build", "dist", "shared") or p.endswith(".egg-info") or p.startswith(".venv") for p in parts
            ):
                yield path


@pytest.mark.parametrize("path", MODULES, ids=_names(MODULES))
def test_no_assert_and_nothing_unfinished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [node.lineno for node in ast.walk(_tree(path)) if isinstance(node, ast.Assert)]
    assert not re.findall(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b|pragma: no cover", text)


@pytest.mark.parametrize("path", MODULES, ids=_names(MODULES))
def test_a_file_has_one_topic(path: Path) -> None:
    assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, "make a folder of it"


def _part(name: str) -> int | None:
    """The place of a dotted module name in ORDER; None for what does not belong to refdiff, or stands above all."""
    parts = name.split(".")
    return ORDER.index(parts[1]) if parts[0] == "refdiff" and len(parts) > 1 and parts[1] in ORDER else None


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, is at the level of the module) of everything that a file imports, relative names resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = _tree(path)
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inner |= {id(n) for n in ast.walk(node)}
    for node in ast.walk(tree):
        at_top = id(node) not in inner
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, at_top
            if module == "refdiff":
                yield from ((f"refdiff.{alias.name}", at_top) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=_names(MODULES))
def test_imports_come_from_files_above(path: Path) -> None:
    own = _part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        return  # the package itself and __main__ stand outside the order
    below = [name for name, at_top in _imports(path) if at_top and (part := _part(name)) is not None and part > own]
    assert not below, f"{path.name} imports from below: {below}"


@pytest.mark.parametrize("path", LAYERS, ids=_names(LAYERS))
def test_layers_name_no_array_library(path: Path) -> None:
    imported = {name.split(".")[0] for name, _ in _imports(path)}
    assert not imported & {"numpy", "cupy", "torch", "jax", "array_api_strict"}
    assert not [n.id for n in ast.walk(_tree(path)) if isinstance(n, ast.Name) and n.id in ("np", "cp", "numpy")]


@pytest.mark.parametrize("path", LAYERS, ids=_names(LAYERS))
def test_layer_docstrings_have_their_headings_in_order(path: Path) -> None:
    public = {name for name in layers.__all__ if getattr(layers, name).__module__ == f"refdiff.layers.{path.stem}"}
    functions = [n for n in _tree(path).body if isinstance(n, ast.FunctionDef) and n.name in public]
    assert len(functions) == len(public)
    for function in functions:
        doc = ast.get_docstring(function) or ""
        found = [line.strip() for line in doc.splitlines() if line.strip() in HEADINGS]
        assert found == list(HEADINGS), f"{path.name}: {function.name} has {found}"


MIRRORED = [
    path
    for part in (
        "layers",
        "model",
        "convert",
        "generation",
        "training",
        "backends",
        "oracle",
        "viz",
        "bench",
        "cli",
        "hub",
    )
    for path in sorted((PACKAGE / part).rglob("[!_]*.py"))
]


@pytest.mark.parametrize("path", MIRRORED, ids=_names(MIRRORED))
def test_every_module_has_its_test_file(path: Path) -> None:
    inside = path.relative_to(PACKAGE)
    mirror = ROOT / "tests" / inside.with_name(f"test_{inside.name}")
    if len(inside.parts) > 2 and inside.parts[0] == "oracle":  # its folders are tested by what they promise
        mirror = ROOT / "tests" / inside.parent
    assert mirror.exists(), f"{inside} has no {mirror.relative_to(ROOT)}"


HEAVY = (
    "huggingface_hub",
    "tokenizers",
    "jinja2",
    "tqdm",
    "cupy",
    "safetensors",
    "ml_dtypes",
    "threadpoolctl",
    "torch",
    "matplotlib",
    "distributed",
)


def test_importing_refdiff_is_light() -> None:
    code = "import sys; before = set(sys.modules); import refdiff; print(*(set(sys.modules) - before))"
    command, options = [sys.executable, "-c", code], {"cwd": ROOT, "env": {"PATH": ""}}
    loaded = subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.split()
    assert "refdiff" in loaded
    assert not [name for name in loaded if name.split(".")[0] in (*HEAVY, "numpy")]
    assert start_seconds(command, **options) < 0.15


def test_importing_the_model_loads_what_it_computes_with_and_no_more() -> None:
    code = "import sys; from refdiff import DiffLlamaForCausalLM; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "numpy" in loaded
    assert not [name for name in loaded if name in ("huggingface_hub", "tokenizers", "jinja2", "tqdm", "cupy", "torch")]


def test_nothing_names_a_machine() -> None:
    """No path of the machine that a file was written on, and no address of a registry."""
    pattern = re.compile(
        r"(?<![\w.])/(?:home|Users|root|work|opt|tmp)/\w|\.pyenv|/site-packages/|://(?:pypi|files\.pythonhosted|registry\.npmjs)\."
    )
    for path in _files("*", "refdiff/**/*", "tests/**/*", ".ci/*", ".github/**/*", "notebooks/**/*"):
        if path.is_file() and path.suffix in (".py", ".md", ".cfg", ".toml", ".yml", ".yaml", ".json", ".ipynb", ""):
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if pattern.search(line)]
            if path != Path(__file__):
                assert not found, f"{path.relative_to(ROOT)}: {found[:3]}"


def test_the_tests_test_this_tree(pytestconfig: pytest.Config) -> None:
    """`python -m pytest` must not find an older copy that was installed; `-o pythonpath=` asks for that one."""
    import refdiff

    here = Path(refdiff.__file__).parents[1]
    assert here == ROOT or ("site-packages" in here.parts and not pytestconfig.getini("pythonpath"))
