"""The house rules of docs/design.md as tests: who may import whom, what may be imported where, and sizes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "nightschool"
FILES = sorted(ROOT.rglob("*.py"))

# The order to read the house in: a module imports only from those before it, in its own row or above.
ROWS = {
    "words: know nothing": "errors paths events settings pace recipes receipt statements wordings",
    "files and rows": (
        "gguf pieces decoders memory store chunks rich_documents documents library datasets download hub "
        "peft tuned adapters jobs uploads vector_stores"
    ),
    "processes and tensors": (
        "grammar parallel _engine_child _engine_process engine vectors index quants ops attention shapes "
        "vocabulary conversion llama2c huggingface convert"
    ),
    "the model": "templates lessons model lora",
    "learning": (
        "quoting exam check answer train precision distil evaluate scoring syllabus lessonbook writer "
        "teacher writing rehearsal"
    ),
    "whole pieces of work": (
        "promotion examination forget leftovers merge export runs fit study rebuild demo fine_tune worker "
        "supervisor"
    ),
    "people and programs": "server cli __main__",
}
ORDER = {name: place for place, name in enumerate(" ".join(ROWS.values()).split())}

# What only these modules may import, wherever in them it stands; everybody else goes through them.
ONLY_IN = {
    "torch": (
        "quants ops attention shapes conversion llama2c huggingface model lora train precision distil "
        "scoring merge fit"
    ),
    "xllamacpp": "_engine_child",
    "sqlite3": "store",
    "click": "cli",
    "rich": "cli",
    "httpx": "download _engine_process engine teacher",
    "fastapi": "server",
    "starlette": "server",
    "uvicorn": "server",
    "pydantic": "server",
    "prometheus_client": "server",
    "urllib.request": "_engine_child",
    "socket": "_engine_child server",
    "subprocess": "_engine_process _engine_child supervisor",
    "multiprocessing": "",
    "pickle": "",  # a file of anybody's must not be able to run code
    "transformers": "",  # for tests and benchmarks: what we are held against, we do not stand on
    "gguf": "",
    "requests": "",
}
VAGUE = {"utils", "util", "common", "helpers", "manager", "misc", "base", "core"}
MAX_FILE, MAX_FUNCTION, MAX_NESTING = 600, 80, 3


def name_of(path: Path) -> str:
    """The module, or the package under nightschool, that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported name, those inside functions too: a late import obeys the same rules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.fixture(params=FILES, ids=lambda path: str(path.relative_to(ROOT)))
def file(request) -> Path:
    return request.param


@pytest.fixture
def tree(file) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def test_imports_go_one_way(file, tree):
    me = name_of(file)
    if me == "__init__":
        assert not list(imports(tree)), "nightschool/__init__.py holds the version and nothing else"
        return
    assert me in ORDER, (
        f"{file.name} has no place yet: add {me!r} to ROWS in tests/test_architecture.py, after all that it "
        "imports, and a line about it to docs/design.md"
    )
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "nightschool" and rest and rest[0] not in (me, "__version__"):
            assert rest[0] in ORDER, f"{me} imports nightschool.{rest[0]}, which is not in ROWS"
            assert ORDER[rest[0]] < ORDER[me], (
                f"{me} imports {rest[0]}, which comes after it: move what both need to a module before both, "
                "or, if the order of ROWS is wrong, change it there and in docs/design.md"
            )


def test_libraries_stay_where_they_belong(file, tree):
    me = name_of(file)
    for name in imports(tree):
        for library, allowed in ONLY_IN.items():
            assert not f"{name}.".startswith(f"{library}.") or me in allowed.split(), (
                f"{me} imports {library}: only {allowed or 'nobody'} may (ONLY_IN in this file)"
            )


def test_only_the_terminal_prints(file, tree):
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    printing = [node.lineno for node in calls if getattr(node.func, "id", "") == "print"]
    assert not printing or name_of(file) in ("cli", "_engine_child"), (
        f"line {printing}: work yields events; the command line draws them"
    )


def test_files_and_functions_are_short(file, tree):
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE, f"{lines} lines: this file holds two concepts"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION, f"{node.name} does more than one thing"
            assert nesting(node) <= MAX_NESTING, f"{node.name} is nested too deep"


def nesting(node: ast.AST) -> int:
    """How many branches and loops stand inside one another; `elif` is no deeper than its `if`."""
    blocks = ast.If | ast.For | ast.While | ast.Match
    deepest = 0
    for child in ast.iter_child_nodes(node):
        below = nesting(child)
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, below + (isinstance(child, blocks) and not chained))
    return deepest


def test_names_say_what_a_module_is_about(file):
    assert not VAGUE & set(file.stem.split("_")), f"{file.name}: name it after what is in it"


def test_every_row_names_modules_that_are_there():
    assert set(ORDER) <= {name_of(file) for file in FILES}, "ROWS names a module that is gone"
    assert len(ORDER) == len(" ".join(ROWS.values()).split()), "a module stands twice in ROWS"
    everybody = set(ORDER)
    for library, names in ONLY_IN.items():
        assert set(names.split()) <= everybody, f"ONLY_IN[{library!r}] names a module that is gone"


def test_the_engine_child_needs_nothing_of_ours():
    """It is run as a file, so that it starts quickly and falls alone."""
    tree = ast.parse((ROOT / "_engine_child.py").read_text(encoding="utf-8"))
    assert not [name for name in imports(tree) if name.startswith("nightschool")]


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after running code in a Python of its own."""
    code += "; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}"], capture_output=True, check=True)
    return set(done.stdout.decode().split())


@pytest.mark.parametrize(
    "module", ["adapters", "engine", "hub", "datasets", "lessons", "recipes", "server.app"]
)
def test_what_serves_does_not_load_torch(module):
    assert not loaded_by(f"import nightschool.{module}") & {"torch", "xllamacpp"}


@pytest.mark.parametrize("module", ["nightschool", "nightschool.cli"])
def test_starting_up_loads_nothing_heavy(module):
    assert not loaded_by(f"import {module}") & {"torch", "xllamacpp", "rich", "httpx", "numpy", "psutil"}
