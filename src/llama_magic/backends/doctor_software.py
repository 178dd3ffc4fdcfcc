"""The doctor's checks of software: Python, llama.cpp, its backend modules, build tools, the notebook's front end."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llama_magic.backends.findings import OK, PROBLEM, WARNING, Finding
from llama_magic.backends.modules import Module
from llama_magic.backends.prerequisites import Prerequisite
from llama_magic.backends.setup import Problem

__all__ = [
    "HubProbe",
    "HubRequest",
    "check_frontend",
    "check_hub",
    "check_llama_cpp_python",
    "check_modules",
    "check_python",
    "check_tools",
    "check_worker",
    "installed_version",
]


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, None where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (4, 2) of 4.2.0rc1."""
    numbers = []
    for part in version.split(".")[:2]:
        digits = "".join(char for char in part if char.isdigit())
        numbers.append(int(digits or 0))
    return tuple(numbers)


def check_python(version: tuple[int, int, int], executable: str, own: str) -> Finding:
    """Tell of Python and of llama_magic."""
    words = f"Python {'.'.join(map(str, version))} ({executable}), llama_magic {own}"
    if version < (3, 10):
        return Finding("llama.cpp", "Python", PROBLEM, f"{words}: 3.10 or newer is needed")
    return Finding("llama.cpp", "Python", OK, words)


def check_llama_cpp_python(version: str | None, wanted: str) -> Finding:
    """Compare the version of llama-cpp-python with what llama_magic was tested with, such as ``>=0.3.36,<0.3.37``."""
    fix = f"pip install 'llama-cpp-python{wanted}'"
    if version is None:
        return Finding("llama.cpp", "llama-cpp-python", PROBLEM, "not installed: nothing can be computed", fix)
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        inside = SpecifierSet(wanted).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        inside = True
    if not inside:
        words = f"{version}, but llama_magic was tested with {wanted} only: structures may differ, and calls crash"
        return Finding("llama.cpp", "llama-cpp-python", WARNING, words, fix)
    return Finding("llama.cpp", "llama-cpp-python", OK, f"{version} (tested: {wanted})")


def check_worker(seconds: float, commit: str, ggml: str, problem: str, fix: str = "") -> Finding:
    """Tell whether a worker starts and loads llama.cpp; `problem` says why not."""
    if problem:
        return Finding("llama.cpp", "worker", PROBLEM, problem, fix)
    return Finding("llama.cpp", "worker", OK, f"starts in {seconds:.1f} s: llama.cpp {commit}, ggml {ggml}")


def check_modules(
    modules: Mapping[str, Module], left_out: Sequence[Problem], selected: str, stale: int = 0
) -> Iterator[Finding]:
    """Tell of the backend modules that were built here.

    Parameters
    ----------
    left_out
        What a worker that was to load them all could not.
    selected
        Names of the backends that are selected.
    stale
        Folders of modules for another llama.cpp.
    """
    reasons = {problem.what: problem.reason for problem in left_out}
    if not modules:
        words = "none is built: llama.cpp uses what was compiled into llama-cpp-python (%llama backends lists all)"
        yield Finding("backends", "modules", OK, words)
    for name, module in modules.items():
        problem = module.problem or reasons.get(module.path, "")
        if problem:
            yield Finding("backends", f"module {name}", PROBLEM, f"can not be used: {problem}", f"%llama build {name}")
        else:
            yield Finding("backends", f"module {name}", OK, f"loads; {module.path}")
    if stale:
        words = f"modules for {stale} other llama.cpp are kept; they are never loaded"
        yield Finding("backends", "older modules", OK, words)
    yield Finding("backends", "selected", OK, selected or "what is compiled into llama-cpp-python")


#: What building any backend needs, and what further pieces are for, by the makers of cards that they are of use to.
_ALWAYS = ("compiler", "cmake", "generator")
_FOR = {
    "nvcc": ("NVIDIA",), "rocm": ("AMD",), "glslc": ("NVIDIA", "AMD", "Intel"),
    "vulkan-headers": ("NVIDIA", "AMD", "Intel"), "vulkan-loader": ("NVIDIA", "AMD", "Intel"),
    "spirv-headers": ("NVIDIA", "AMD", "Intel"), "openblas": (),
}  # fmt: skip


def check_tools(look: Callable[[str], Prerequisite], cards: Collection[str], platform: str) -> Iterator[Finding]:
    """Tell of what builds need. What is of no use on this machine is in order where it is missing, too."""
    keys = [*_ALWAYS, "xcode"] if platform == "darwin" else [*_ALWAYS, *_FOR]
    for key in keys:
        found = look(key)
        if found.ok:
            yield Finding("building", found.name, OK, found.evidence)
        elif key in _ALWAYS or key == "xcode":
            words = f"{found.evidence}: backends can not be built here"
            yield Finding("building", found.name, WARNING, words, found.fix)
        elif set(_FOR[key]) & set(cards):
            words = f"{found.evidence}: the backend for this machine's card can not be built"
            yield Finding("building", found.name, WARNING, words, found.fix)
        else:
            why = "only the backend blas needs it" if key == "openblas" else "of no use without a card"
            yield Finding("building", found.name, OK, f"{found.evidence}; {why}")


def check_frontend(
    version: Callable[[str], str | None], kernel: str | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Tell of what shows notebooks, as far as the kernel's own environment holds it.

    Parameters
    ----------
    version
        Returns the version of a package, or None.
    kernel
        Version of ipykernel where it runs, None without a kernel.
    """
    yield Finding(
        "notebook",
        "kernel",
        OK,
        f"IPython {version('ipython')}, " + (f"ipykernel {kernel}" if kernel else "no kernel: a terminal"),
    )
    widgets = version("ipywidgets")
    if widgets is None:
        yield Finding(
            "notebook", "ipywidgets", WARNING, "not installed: the panel can not be shown", "pip install ipywidgets"
        )
    elif _release(widgets) < (8, 0):
        words = f"{widgets} is too old for the panel: 8 is needed"
        yield Finding("notebook", "ipywidgets", WARNING, words, "pip install -U ipywidgets")
    else:
        yield Finding("notebook", "ipywidgets", OK, widgets)
    if environment.get("COLAB_RELEASE_TAG"):
        yield Finding("notebook", "front end", OK, "Google Colab: widgets work, files last as long as the session")
        return
    if environment.get("VSCODE_PID") or environment.get("VSCODE_CWD"):
        yield Finding("notebook", "front end", OK, "Visual Studio Code: its Jupyter extension shows widgets")
        return
    yield from _jupyter(version)


def _jupyter(version: Callable[[str], str | None]) -> Iterator[Finding]:
    found = {name: version(name) for name in ("jupyterlab", "notebook") if version(name) is not None}
    if not found:
        words = "neither JupyterLab nor Notebook is in the kernel's environment; another one may show the notebook"
        yield Finding("notebook", "front end", OK, words)
        return
    words = ", ".join(f"{name} {number}" for name, number in found.items())
    old = [
        name
        for name, least in (("jupyterlab", (4, 0)), ("notebook", (7, 0)))
        if name in found and _release(found[name] or "") < least
    ]
    if old:
        yield Finding(
            "notebook",
            "front end",
            WARNING,
            f"{words}: outputs need JupyterLab 4 or Notebook 7",
            f"pip install -U {' '.join(old)}",
        )
    else:
        yield Finding("notebook", "front end", OK, words)
    if version("ipywidgets") is not None and version("jupyterlab-widgets") is None:
        words = "jupyterlab_widgets is missing: JupyterLab shows 'Error displaying widget' in place of the panel"
        yield Finding("notebook", "widget manager", PROBLEM, words, "pip install jupyterlab_widgets")


# -- the Hub, asked in a worker of its own ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HubRequest:
    """Ask the Hub for a sign of life; the result is a `HubProbe`."""

    timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class HubProbe:
    """What came of it.

    Attributes
    ----------
    endpoint
        The address asked.
    seconds
        Time to the answer.
    status
        Its HTTP status, 0 without an answer.
    offline
        HF_HUB_OFFLINE is set: nothing was asked.
    token
        A token would be sent.
    error
        Why there was no answer.
    """

    endpoint: str
    seconds: float = 0.0
    status: int = 0
    offline: bool = False
    token: bool = False
    error: str = ""


def check_hub(probe: HubProbe) -> Finding:
    """Tell whether models can be downloaded."""
    token = "a token is set" if probe.token else "no token is set"
    if probe.offline:
        words = "HF_HUB_OFFLINE is set: only what was downloaded before can be loaded"
        return Finding("Hub", "Hugging Face Hub", OK, words)
    if probe.error:
        words = f"{probe.endpoint} does not answer ({probe.error}): models can not be downloaded, those here work"
        return Finding("Hub", "Hugging Face Hub", WARNING, words, f"curl -I {probe.endpoint}")
    if probe.status >= 400 and probe.status != 401:
        words = f"{probe.endpoint} answers {probe.status}: downloads may fail ({token})"
        return Finding("Hub", "Hugging Face Hub", WARNING, words)
    return Finding("Hub", "Hugging Face Hub", OK, f"{probe.endpoint} answers in {probe.seconds:.1f} s; {token}")
