"""The shape of the code: imports go one way, and a database's peculiarities stay in its file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "etl").rglob("*.py"))

# What each package of etl/ may import from the others.
FOUNDATIONS = {"config", "errors", "phone", "log"}
MAY_IMPORT = {
    "cli": {"monitoring", "sync", "api", "db", "sandbox", *FOUNDATIONS},
    "monitoring": {"sync", "api", "db", *FOUNDATIONS},
    "sync": {"api", "db", *FOUNDATIONS},
    "api": FOUNDATIONS,
    "db": {"api.models", *FOUNDATIONS},
    "sandbox": set(),
    "config": {"errors", "phone"},
    "errors": set(),
    "phone": set(),
    "log": set(),
}


def imports(path: Path) -> Iterator[str]:
    """The modules of etl that a file imports, anywhere in it, without the leading `etl.`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("etl.") for name in names if name.startswith("etl."))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    """A package imports only itself and the packages below it."""
    package = path.relative_to(ROOT / "etl").parts[0].removesuffix(".py")
    if package in {"__init__", "__main__"}:
        return
    allowed = {package, "__version__", *MAY_IMPORT[package]}
    wrong = [
        module
        for module in imports(path)
        if not any(module == name or module.startswith(f"{name}.") for name in allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_backends_know_databases(path: Path) -> None:
    """No other file asks which database it talks to, or imports a driver or a dialect."""
    if "backends" in path.parts:
        return
    tree = ast.parse(path.read_text("utf-8"))
    asked = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("dialect.name")
    ]
    drivers = [
        module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if module.startswith(("psycopg", "pymysql", "sqlalchemy.dialects"))
    ]
    assert asked + drivers == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    """A file has at most 400 lines, a function 45."""
    text = path.read_text("utf-8")
    assert text.count("\n") <= 400
    functions = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    long = {
        node.name: lines
        for node in functions
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > 45
    }
    assert long == {}


def test_at_most_ten_rooms() -> None:
    """A newcomer sees at one look where a thing belongs."""
    rooms = {path.relative_to(ROOT / "etl").parts[0] for path in FILES}
    assert len(rooms - {"__init__.py", "__main__.py"}) <= 10
