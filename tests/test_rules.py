"""The house rules that a machine can check. Each test names every file that breaks its rule."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.arrays import Array, namespace
from refdiff.backends.numpy.layout import same_dtype
from tests.quickness import start_seconds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "refdiff"
# A file imports only from folders before its own: the tree is the path of the data, and the order of imports.
ORDER = (
    "limits", "messages", "refused", "browser", "errors", "files", "memory", "arrays", "bundled", "hub",
    "layers", "backends", "model", "convert", "generation", "training", "pipelines", "oracle", "viz", "exercises",
    "bench", "cli",
)  # fmt: skip
HEADINGS = ("Equation:", "Used as:", "Shapes:", "Precision:", "Raises:")
AXES = set("BTSHKDFV") | set("IO")  # I and O: the sizes of a matrix that is any of the model's


@cache
def modules() -> dict[str, ast.Module]:
    """Parse every file of the package."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def _place(name: str) -> int | None:
    """Return where a dotted module name stands in ORDER; None for what is not refdiff's, or stands above all."""
    parts = name.split(".")
    return ORDER.index(parts[1]) if parts[0] == "refdiff" and len(parts) > 1 and parts[1] in ORDER else None


@cache
def _imports(path: str) -> list[tuple[str, bool]]:
    """List (dotted name, is at module level) of everything that a file imports, relative names resolved."""
    package, found = path.removesuffix(".py").split("/")[:-1], []

    def visit(block: ast.AST, at_top: bool) -> None:
        for node in ast.iter_child_nodes(block):
            if isinstance(node, ast.Import):
                found.extend((alias.name, at_top) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                found.append((module, at_top))
                if module == "refdiff":
                    found.extend((f"refdiff.{alias.name}", at_top) for alias in node.names)
            elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                later = isinstance(node, ast.FunctionDef) or (
                    isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
                )
                visit(node, at_top and not later)

    visit(modules()[path], True)
    return found


def test_imports_come_from_folders_above() -> None:
    below = []
    for path in modules():
        own = _place(path.removesuffix(".py").replace("/", "."))
        if own is not None:  # the package itself and __main__ stand outside the order
            below += [(path, name) for name, top in _imports(path) if top and (_place(name) or 0) > own]
    assert not below
    libraries = {"numpy", "cupy", "torch", "jax", "array_api_strict"}
    named = [
        (path, name)
        for path in modules()
        if path.startswith("refdiff/layers/")
        for name, _ in _imports(path)
        if name.split(".")[0] in libraries
    ]
    assert not named, "layers compute on any array library"


def test_no_command_but_bench_imports_the_benchmark() -> None:
    for path in modules():
        if path.startswith("refdiff/cli/") and not Path(path).stem.startswith("bench"):
            assert not [name for name, _ in _imports(path) if name.startswith("refdiff.bench")], path


def test_no_assert_nothing_unfinished_and_one_topic_a_file() -> None:
    found = []
    for path, tree in modules().items():
        text = (ROOT / path).read_text(encoding="utf-8")
        found += [(path, node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        found += [
            (path, m[0]) for m in re.finditer(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b|pragma: no cover", text)
        ]
        if Path(path).stem in ("utils", "helpers", "misc", "common") or text.count("\n") > 500:
            found.append((path, "one topic a file, at most 500 lines"))
    assert not found


def test_the_guide_has_the_order_of_imports() -> None:
    guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", guide.split("| folder or file |")[1].split("\n\n")[0], re.MULTILINE)
    assert re.findall(r"`(\w+)(?:/|\.py)`", " ".join(rows)) == list(ORDER)


def _example_of(heading: str, **names: Any) -> dict[str, Any]:
    guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = textwrap.dedent(guide.split(heading)[1].split("```python\n")[1].split("   ```")[0])
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_kernel_of_the_guide_leaves_to_the_layer_what_the_layer_refuses() -> None:
    known = {"Any": Any, "Runtime": Any, "FloatArray": np.ndarray, "same_dtype": same_dtype}
    rms_norm = _example_of("### A kernel", **known)["rms_norm"]
    assert rms_norm.__doc__
    for weight, eps in ((None, -1.0), (None, np.nan), (np.ones(2), 0.1), (np.ones(3, np.float32), 0.1)):
        assert rms_norm(None, np.ones(3), weight, eps) is NotImplemented
    assert rms_norm(None, np.ones(3), np.ones(3), 0.1) is None


def test_the_layer_of_the_guide_keeps_the_rules_of_layers() -> None:
    """It refuses in its derivative what it refuses itself, and a gradient of another shape; its slope is right."""
    names = _example_of("### A layer", Array=Array, namespace=namespace)
    softcap, softcap_vjp = names["softcap"], names["softcap_vjp"]
    x, step = np.linspace(-7, 7, 15), 1e-5
    slope = (softcap(x + step, 2.5) - softcap(x - step, 2.5)) / (2 * step)
    np.testing.assert_allclose(softcap_vjp(np.full(15, 3.0), x, 2.5)[0], 3 * slope, atol=1e-9)
    with pytest.raises(ValueError, match=r"^softcap: cap: got 0, expected a number above 0"):
        softcap_vjp(np.ones(15), x, 0)
    with pytest.raises(ValueError, match=r"^softcap_vjp: g: got shape \(\), expected \(15,\), like x$"):
        softcap_vjp(np.ones(()), x, 2.5)


ABOVE_BACKENDS = ("layers", "model", "generation", "training")
PUBLIC_ARGUMENTS = ("model/pretrained.py", "training/train.py", "training/settings.py")
"""Files that take `kernels` or `threads` from a user, and pass them on."""


def _words(tree: ast.Module) -> set[str]:
    """Return the words of all identifiers: `thread_pool` and `ThreadPool` have two."""
    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                names.append(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.ImportFrom(module=module, names=aliases):
                names += [*(module or "").split("."), *(alias.name for alias in aliases)]
    return {word.lower() for name in names for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _documented_words(tree: ast.Module) -> set[str]:
    """Return the words of all docstrings, those under constants and fields included."""
    texts = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return {word for text in texts for word in re.findall("[a-z]+", text.lower())}


def test_only_backends_know_what_is_fast() -> None:
    """Above them nothing names kernels or threads, or imports from inside a backend; what is public is passed on."""
    found: list[tuple[str, object]] = []
    for path in modules():
        file = path.removeprefix("refdiff/")
        if not file.startswith(ABOVE_BACKENDS):
            continue
        words = {"kernel", "kernels", "thread", "threads", "fused", "workspace"}
        if file in PUBLIC_ARGUMENTS:
            words -= {"kernels", "threads"}
        if file != "model/recorder.py":  # it records what layers compute
            words.add("recorded")
        found += [(path, word) for word in words & _words(modules()[path])]
        words -= {"thread", "threads", "recorded"}  # in prose also a user's thread, and what a log has
        found += [(path, f"{word}, in a docstring") for word in words & _documented_words(modules()[path])]
        found += [(path, name) for name, _ in _imports(path) if name.startswith("refdiff.backends.")]
    assert not found


def test_only_the_oracle_pipelines_and_errors_read_signatures() -> None:
    """The oracle asks what a user's kernel takes, and a call for its arguments; a pipeline lists its run's options.

    An error about an argument lists those of the method.

    Elsewhere the documented arguments are given.
    """
    reads = {f"refdiff/oracle/{file}.py" for file in ("inputs/signature", "mistakes/catalogue")}
    reads |= {"refdiff/pipelines/base.py", "refdiff/refused.py"}
    names = {"inspect.signature", "inspect.getfullargspec", "__kwdefaults__", "__signature__", "__wrapped__"}
    found = [
        (path, name)
        for path, tree in modules().items()
        if path not in reads
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and {name := node.attr, ast.unparse(node)} & names
    ]
    assert not found


NO_THRESHOLDS = {
    "SMALLEST_NORMAL",  # of number formats
    "RMS_ROUNDING", "ROUNDINGS",  # what roundings add up to
    "SATURATED",  # of numerical methods: differences, equality, divisions
    "LAMBDAS", "FAR_GAIN",  # values of cases
}  # fmt: skip


DECIDING = ("budget", "diagnosis", "divergence", "suite", "trace", "verdict")
"""Folders of the oracle whose code decides a verdict or a name. Others have values of cases, mistakes and layers."""
NUMBERS = {
    ("diagnosis/diagnose.py", 1e-6),  # of a percentage that is printed
    *(("diagnosis/evidence.py", x) for x in (1e6, 1e9, 1e300)), ("diagnosis/search.py", 1e8),  # in place of ∞
    *(("diagnosis/evidence.py", x) for x in (1e-300, 1e-150)), ("diagnosis/diagnose.py", 1e-300),  # in place of 0
    ("diagnosis/search.py", 1e-150),  # the same
    ("diagnosis/ranking.py", 1e-3),  # of a grid's ends, and of printed digits
    ("diagnosis/ranking.py", 0.5), ("diagnosis/search.py", 0.5),  # of counting what was fitted, and the least residual
}  # fmt: skip


def _numbers(tree: ast.AST) -> Iterator[float]:
    """Yield the floats in code, those of arguments and defaults too, but for exponents: 2.0**-11 is one float."""
    exact = (-1.0, 0.0, 1.0, 2.0)
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _is_number(node):
            yield from _numbers(ast.Tuple([node.left]))
        elif isinstance(node, ast.expr) and _is_number(node):
            value = eval(compile(ast.Expression(node), "", "eval"))
            if isinstance(value, float) and value not in exact:
                yield value
        else:
            yield from _numbers(node)


def _is_number(node: ast.expr) -> bool:
    """Whether an expression consists of numbers alone, such as 1 / 8 or 2.0**-11."""
    parts = [n for n in ast.walk(node) if not isinstance(n, ast.operator | ast.unaryop)]
    number = ast.BinOp | ast.UnaryOp | ast.Constant
    return all(isinstance(n, number) for n in parts) and all(
        type(n.value) in (int, float) for n in parts if isinstance(n, ast.Constant)
    )


def test_thresholds_of_the_oracle_are_in_one_file_with_their_evidence() -> None:
    """Other modules have no fractions but those above; each field of a threshold has its evidence beside it.

    Functions of `DECIDING` have none either, whether compared or passed on.
    """
    no_number = ast.Call | ast.Dict | ast.Lambda
    found = {
        ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        for path, tree in modules().items()
        for node in (tree.body if path.startswith("refdiff/oracle/") else ())
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
        and any(isinstance(n, ast.Constant) and isinstance(n.value, float) for n in ast.walk(node.value))
        and not any(isinstance(n, no_number) for n in ast.walk(node.value))
    }  # fmt: skip
    assert found == NO_THRESHOLDS
    within = {
        (path.removeprefix("refdiff/oracle/"), number)
        for path, tree in modules().items()
        if path.startswith(tuple(f"refdiff/oracle/{folder}/" for folder in DECIDING))
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        for number in _numbers(node)
    }
    assert within == NUMBERS
    path = "refdiff/oracle/thresholds.py"
    lines = (ROOT / path).read_text().splitlines()
    fields = [n for area in modules()[path].body if isinstance(area, ast.ClassDef) for n in area.body]
    fields = [n for n in fields if isinstance(n, ast.AnnAssign) and not isinstance(n.value, ast.Call)]
    missing = [ast.unparse(n.target) for n in fields if "  # " not in lines[n.lineno - 1]]
    assert len(fields) > 1
    assert not missing, f"no evidence beside {missing}"


def test_public_names_have_docstrings() -> None:
    """Every module, and every public class and function in it; of a layer, with its headings in order and its axes."""
    missing = [path for path, tree in modules().items() if not ast.get_docstring(tree)]
    for path, tree in modules().items():
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
        if not path.startswith("refdiff/cli/"):  # nobody calls a command's functions but main
            missing += [f"{path}: {node.name}" for node in public if not ast.get_docstring(node)]
    for name in layers.__all__:
        missing += [f"layers.{name}: {fault}" for fault in _headings(name)]
    assert not missing


def _headings(name: str) -> Iterator[str]:
    doc = inspect.getdoc(getattr(layers, name)) or ""
    found = [line.strip() for line in doc.splitlines() if line.strip() in HEADINGS]
    if found != [heading for heading in HEADINGS if heading in found]:
        yield f"headings {found} are not in the order of {HEADINGS}"
    if not name.endswith("_vjp") and not {"Equation:", "Shapes:"} <= set(found):
        yield "no equation, or no shapes"
    shapes = re.search(r"Shapes:\n(.*?)(\n\n|\Z)", doc, re.DOTALL)
    sizes = " ".join(re.findall(r"\(([^()]*)\)", shapes[1])) if shapes else ""
    if letters := set(re.findall(r"(?<![\w.])[A-Z](?!\w)", sizes)) - AXES:
        yield f"axes {letters} are not among {AXES}"


def test_tests_mirror_the_folders_of_the_package() -> None:
    """Each folder of code has one of tests; which files are in it is free."""
    folders = {
        Path(path).relative_to("refdiff").parent
        for path in modules()
        if path.count("/") > 1 and not path.endswith("__init__.py")
    }
    missing = [folder.as_posix() for folder in folders if not list((ROOT / "tests" / folder).glob("test_*.py"))]
    assert not missing


HEAVY = {
    "huggingface_hub", "tokenizers", "jinja2", "tqdm", "cupy", "safetensors", "ml_dtypes", "threadpoolctl", "torch",
    "matplotlib", "distributed",
}  # fmt: skip


def test_importing_refdiff_is_light() -> None:
    code = "import sys; before = set(sys.modules); import refdiff; print(*(set(sys.modules) - before))"
    command, options = [sys.executable, "-c", code], {"cwd": ROOT, "env": {"PATH": ""}}
    loaded = subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.split()
    assert "refdiff" in loaded
    assert not {name.split(".")[0] for name in loaded} & (HEAVY | {"numpy"})
    assert start_seconds(command, **options) < 0.1
    code = "import sys; from refdiff import DiffLlamaForCausalLM; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "numpy" in loaded
    assert not {"huggingface_hub", "tokenizers", "jinja2", "tqdm", "cupy", "torch"} & set(loaded)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file, and none of another, such as the data of coverage beside the sources."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []


def test_nothing_names_a_machine() -> None:
    """No path of the machine that a file was written on, and no address of a registry."""
    pattern = re.compile(
        r"(?<![\w.])/(?:home|Users|root|work|opt|tmp)/\w|\.pyenv|/site-packages/|://(?:pypi|files\.pythonhosted|registry\.npmjs)\."
    )
    suffixes = (".py", ".md", ".cfg", ".toml", ".yml", ".yaml", ".json", ".ipynb", ".cff", "")
    found = [
        (path.relative_to(ROOT).as_posix(), line)
        for top in ("*", "refdiff/**/*", "tests/**/*", ".ci/*", ".github/**/*", "notebooks/**/*")
        for path in ROOT.glob(top)
        if path.is_file() and path.suffix in suffixes and path.name != ".git" and path != Path(__file__)
        for line in _lines(path)
        if pattern.search(line)
    ]
    assert not found


def test_the_tests_test_this_tree(pytestconfig: pytest.Config) -> None:
    """`python -m pytest` must not find an older copy that was installed; `-o pythonpath=` asks for that one."""
    import refdiff

    here = Path(refdiff.__file__).parents[1]
    assert here == ROOT or ("site-packages" in here.parts and not pytestconfig.getini("pythonpath"))


def _imported_files(path: str) -> set[str]:
    """The files of the package that a file imports; of a package's names, those that are files of it."""
    files = set()
    for node in ast.walk(modules()[path]):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {alias.name: _file_of(f"{node.module}.{alias.name}") for alias in node.names}
            files |= {file for file in inner.values() if file}
            dotted = [node.module] if None in inner.values() else []
        else:
            continue
        files |= {file for name in dotted if (file := _file_of(name))}
    return files - {path}


def _file_of(dotted: str) -> str | None:
    name = dotted.replace(".", "/")
    return next((file for file in (f"{name}.py", f"{name}/__init__.py") if file in modules()), None)


def test_no_circles_of_imports() -> None:
    """Imports for types and those inside functions count, too."""
    around = ("refdiff/__init__.py", "refdiff/layers/__init__.py")  # which their own files read by design
    files = [path for path in modules() if not path.startswith("refdiff/oracle/")]
    graphlib.TopologicalSorter({path: _imported_files(path) - {*around} for path in files}).prepare()
