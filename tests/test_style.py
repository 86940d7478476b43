"""House rules that a program can check: sizes, one place for each thing, no hidden inputs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    *("conf", "dualscale_mamba", "csrc", "sweeps", "tests", "benchmarks", "docs"),
    *("run.py", "pyproject.toml", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
}
# Written by commands, ignored by git.
PRODUCTS = {"outputs", "multirun", "build", "wandb", "shared", "checkpoints", "__pycache__"}
PYTHON_LINES, TEST_LINES, FUNCTION_LINES, KERNEL_LINES = 300, 450, 60, 400
# The compilers are found through the environment, as is usual for them; nothing that changes a result is.
MAY_READ_ENVIRONMENT = (
    "dualscale_mamba/ops/build.py",
    "dualscale_mamba/ops/toolchain.py",
    "dualscale_mamba/configuration/",
)
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
MACHINE_PATH = re.compile(r"(?<![\w.~$}/])/(?:work|root|home)/\w")
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "misc.py", "common.py"}


def files(*folders: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these suffixes below the folders, as paths from the repository root."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts)


PRODUCT = [*files("dualscale_mamba", "csrc", "benchmarks", suffixes=(".py",)), Path("run.py")]
TESTS = files("tests", suffixes=(".py",))
NATIVE = files("csrc", suffixes=(".h", ".cpp", ".cu", ".cuh"))
TEXTS = [
    *files("conf", "sweeps", suffixes=(".yaml",)),
    *files("docs", "csrc", suffixes=(".md",)),
    *(Path(name) for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")),
]


def read(path: Path) -> str:
    """Text of a file of the repository."""
    if not (ROOT / path).exists():
        pytest.fail(f"{path} is missing")
    return (ROOT / path).read_text(encoding="utf-8")


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines, decorators left out, of every function of a file."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def references(path: Path) -> set[str]:
    """Dotted names that a file imports or uses, e.g. ``os.environ`` or ``hydra.utils.instantiate``."""
    names = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return names


def test_top_level_is_fixed() -> None:
    present = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    extra = {name for name in present - TOP_LEVEL - PRODUCTS if not name.endswith(".egg-info")}
    assert not extra, f"the top level is fixed, see CONTRIBUTING.md; found {sorted(extra)}"


@pytest.mark.parametrize(
    ("paths", "limit"), [(PRODUCT, PYTHON_LINES), (TESTS, TEST_LINES), (NATIVE, KERNEL_LINES)]
)
def test_files_stay_one_idea(paths: list[Path], limit: int) -> None:
    long = {str(path): count for path in paths if (count := len(read(path).splitlines())) > limit}
    assert not long, f"more than {limit} lines: split by idea, {long}"


def test_functions_stay_short() -> None:
    long = {
        name: count
        for path in [*PRODUCT, *TESTS]
        for name, count in functions(path)
        if count > FUNCTION_LINES
    }
    assert not long, f"more than {FUNCTION_LINES} lines: {long}"


def test_results_do_not_depend_on_the_environment() -> None:
    reading = {"os.environ", "os.getenv", "os.putenv"}
    others = [path for path in PRODUCT if not str(path).startswith(MAY_READ_ENVIRONMENT)]
    found = {str(path) for path in others if references(path) & reading}
    assert not found, f"configuration comes from conf/, not from environment variables: {sorted(found)}"


def test_one_module_instantiates() -> None:
    calls = {"hydra.utils.instantiate", "hydra.utils.call"}
    found = sorted(str(path) for path in PRODUCT if references(path) & calls)
    assert len(found) <= 1, f"only one module turns configuration into objects, found {found}"


def test_no_drawer_modules() -> None:
    found = [str(path) for path in PRODUCT if path.name in FORBIDDEN_NAMES]
    assert not found, f"files are named after the one thing they hold: {found}"


def test_nothing_is_left_undone() -> None:
    paths = [*PRODUCT, *NATIVE, *TEXTS, *TESTS]
    found = [
        str(path) for path in paths if path.name != Path(__file__).name and UNFINISHED.search(read(path))
    ]
    assert not found, f"unfinished work belongs into the tracker: {found}"


def test_no_machine_paths() -> None:
    found = [str(path) for path in [*PRODUCT, *NATIVE, *TEXTS, *TESTS] if MACHINE_PATH.search(read(path))]
    assert not found, f"paths of one machine: {found}"
