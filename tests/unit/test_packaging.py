"""What holds for the whole tree: who imports whom, what importing brings, and what no file may hold."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llama_magic
from tests.conftest import REPOSITORY

SOURCE = REPOSITORY / "src" / "llama_magic"
MODULES = sorted(SOURCE.rglob("*.py"))

#: A package imports only from itself and from those before it. What is not named here comes last.
FLOORS = [
    {"_version", "errors", "suggest", "progress", "units", "markup", "safe_text", "several", "locks", "pickling"},
    {"svg"},
    {"native"},
    {"models"},
    {"backends"},
    {"inference"},
    {"quantization"},
    {"evaluation"},
    {"engine"},
    {"serving"},
    {"api"},
    {"notebook"},
]


def module_id(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def floor(name: str) -> int:
    return next((level for level, names in enumerate(FLOORS) if name in names), len(FLOORS))


def home(path: Path) -> str:
    """The package, or the module right below the top, that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_floors(path: Path) -> None:
    own = home(path)
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "llama_magic" or len(parts) == 1:
            continue
        assert parts[1] == own or floor(parts[1]) < floor(own), f"{path}:{line} imports {name} from a lower floor"


def test_only_native_imports_llama_cpp() -> None:
    for path in MODULES:
        if home(path) != "native":
            assert not [name for _, name in imports(path) if name.split(".")[0] == "llama_cpp"], path


def test_only_notebook_imports_ipython() -> None:
    for path in MODULES:
        # the top of the package names IPython's shell as a type, nothing more
        if home(path) not in {"notebook", "__init__"}:
            found = [name for _, name in imports(path) if name.split(".")[0] in {"IPython", "ipywidgets", "traitlets"}]
            assert not found, path


#: Modules whose public functions are reached through a table.
DISPATCHED = ("notebook/commands.py", "notebook/actions/")


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_all_is_complete(path: Path) -> None:
    # its order is ruff's business (RUF022)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    } - {"load_ipython_extension", "unload_ipython_extension"}
    listed: list[str] = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]
        ),
        [],
    )
    assert len(set(listed)) == len(listed)
    assert module_id(path).startswith(DISPATCHED) or public <= set(listed), (
        f"missing in __all__: {sorted(public - set(listed))}"
    )


def test_public_names() -> None:
    assert llama_magic.__all__ == sorted(llama_magic.__all__)
    assert set(llama_magic.__all__) <= set(dir(llama_magic))
    for name in llama_magic.__all__:
        assert getattr(llama_magic, name) is not None
    from llama_magic import errors

    assert set(errors.__all__) <= set(llama_magic.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", llama_magic.__version__)
    with pytest.raises(AttributeError):
        vars(llama_magic)["__getattr__"]("no_such_name")


def python(code: str) -> str:
    """Run code in a fresh interpreter with warnings as errors; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_without_ipython() -> None:
    printed = python(
        """
import importlib, pkgutil, sys
for name in ("IPython", "ipywidgets", "traitlets", "ipykernel"):
    sys.modules[name] = None
import llama_magic
count = 0
for module in pkgutil.walk_packages(llama_magic.__path__, "llama_magic."):
    if not module.name.startswith("llama_magic.notebook") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        count += 1
print(count)
"""
    )
    assert int(printed) > 10


def test_the_kernel_side_is_light() -> None:
    printed = python(
        """
import sys
import llama_magic, llama_magic.api, llama_magic.engine.client, llama_magic.engine.protocol
heavy = {"llama_cpp", "numpy", "IPython", "ipywidgets", "huggingface_hub", "torch", "pandas", "jinja2"}
print(sorted(heavy & set(sys.modules)))
"""
    )
    assert printed.strip() == "[]"


def test_load_ext_is_light() -> None:
    printed = python(
        """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
shell.run_line_magic("load_ext", "llama_magic")
print(sorted({"llama_cpp", "numpy", "ipywidgets", "huggingface_hub"} & (set(sys.modules) - before)))
assert "llama" in shell.magics_manager.magics["cell"]
"""
    )
    assert printed.strip() == "[]"


def test_a_first_look_at_a_file_is_light(smollm2_path: Path) -> None:
    printed = python(
        f"""
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "llama_magic")
before = set(sys.modules)
shell.run_line_magic("llama", "inspect {smollm2_path}")
heavy = {{"numpy", "jinja2", "huggingface_hub", "pygments.lexers.templates", "llama_magic.engine.client"}}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    )
    assert printed.splitlines()[-1] == "[]"


def test_importing_changes_no_environment() -> None:
    printed = python(
        """
import os, logging, signal
before = dict(os.environ), list(logging.root.handlers), signal.getsignal(signal.SIGINT)
import llama_magic, llama_magic.api
import llama_magic.notebook
print(before == (dict(os.environ), list(logging.root.handlers), signal.getsignal(signal.SIGINT)))
"""
    )
    assert printed.strip() == "True"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_modules_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    )
    paths = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


#: Written in pieces, so that this file does not hold them.
FORBIDDEN = [
    re.compile(piece)
    for piece in (
        r"(?<![\w.$}])/" + r"work/\w",
        r"(?<![\w.$}])/" + r"root/\w",
        r"(?<![\w.$}])/" + r"home/(?!jovyan|user|me|you|NAME)\w",
        r"\.py" + r"env/",
        r"pypi" + r"\.org",
        r"python" + r"hosted",
        r"registry\.npm" + r"js",
        r"deb\.deb" + r"ian",
        r"/" + r"opt/(pypi|wheels)",
    )
]


def test_no_machine_paths_or_registry_hosts() -> None:
    found = []
    for path in tracked_files():
        if path.suffix in {".png", ".gguf", ".svg"}:
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {match[0]}" for pattern in FORBIDDEN if (match := pattern.search(text))]
    assert not found


def test_no_weights_and_nothing_large() -> None:
    for path in tracked_files():
        assert path.suffix not in {".gguf", ".safetensors", ".bin"}, path
        assert path.stat().st_size < 2_000_000, path


def test_what_is_installed_is_this_version() -> None:
    from importlib.metadata import metadata

    assert (SOURCE / "py.typed").exists()
    about = metadata("llama-magic")
    assert about["Version"] == llama_magic.__version__
    assert set(about.get_all("Provides-Extra") or ()) >= {"bench", "demo", "test"}
