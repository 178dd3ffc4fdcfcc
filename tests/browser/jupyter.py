"""JupyterLab as a person sees it: start it, open a notebook, run cells, read what they show."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page

__all__ = ["CHROMIUM_FLAGS", "Lab", "NotebookPage", "new_notebook", "start_lab"]

#: Run as root, without a GPU, and without Chromium's own calls to the network.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: JupyterLab's settings: nothing that pops up, and every cell in the page, in view or not.
SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/apputils-extension:sessionDialogs": {"skipKernelRestartDialog": True},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "kernelShutdown": True},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}

REPOSITORY = Path(__file__).resolve().parents[2]
SHOTS = Path(__file__).parent / "shots"


@dataclass
class Lab:
    """A running JupyterLab, or Notebook 7. `root` is the folder that it serves, `view` the address of its notebooks."""

    url: str
    token: str
    root: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    log: Path = field(repr=False)
    view: str = "/doc/tree/"

    def close(self) -> None:
        """Stop the server, which stops its kernels."""
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def api(self, path: str) -> Any:
        """Read one address of the server's REST interface."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=5) as reply:
            return json.load(reply)


def start_lab(
    folder: Path, *, environment: dict[str, str] | None = None, timeout: float = 90, application: str = "jupyterlab"
) -> Lab:
    """Start JupyterLab, or "notebook", on a free loopback port, its root and all its state inside `folder`."""
    root = folder / "root"
    config = folder / "config"
    root.mkdir(parents=True, exist_ok=True)
    (config / "labconfig").mkdir(parents=True, exist_ok=True)
    (config / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    log = folder / "lab.log"
    env = dict(os.environ)
    env |= {
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        # so that a kernel can import tests.fakes
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")))
        ),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    env |= environment or {}
    command = [
        sys.executable, "-m", application, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly",
        "--LabServerApp.expose_app_in_browser=True", "--ServerApp.terminals_enabled=False",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, cwd=root, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    view = "/doc/tree/" if application == "jupyterlab" else "/notebooks/"
    lab = Lab(f"http://127.0.0.1:{port}", token, root, process, log, view)
    _wait_until_up(lab, timeout)
    return lab


def _wait_until_up(lab: Lab, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            lab.api("/api/status")
        except (urllib.error.URLError, OSError) as exc:
            if time.monotonic() > deadline:
                lab.close()
                raise TimeoutError(f"JupyterLab did not answer in {timeout} s:\n{_tail(lab.log)}") from exc
        else:
            return
        try:
            code = lab.process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"JupyterLab ended with code {code}:\n{_tail(lab.log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def new_notebook(sources: Sequence[str]) -> dict[str, Any]:
    """Make a notebook of code cells; a source that starts with ``# %% [markdown]`` becomes a Markdown cell."""
    cells: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if source.startswith("# %% [markdown]\n"):
            cell |= {"cell_type": "markdown", "source": source.split("\n", 1)[1]}
        else:
            cell |= {"cell_type": "code", "source": source, "outputs": [], "execution_count": None}
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


# The panel of the notebook in front, and what is still running of what this page started.
_START = """(command) => {
    window.testPending = (window.testPending || 0) + 1;
    const app = window.jupyterapp;
    app.commands.execute(command).finally(() => { window.testPending -= 1; });
}"""
_IDLE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const kernel = panel?.sessionContext?.session?.kernel;
    if (!kernel || kernel.status !== 'idle' || window.testPending) { return false; }
    return panel.content.widgets.every((cell) => cell.model.type !== 'code'
        || !cell.node.querySelector('.jp-InputPrompt')?.textContent.includes('*'));
}"""
_READY = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    const kernel = panel?.sessionContext?.session?.kernel;
    return Boolean(panel?.content?.model && kernel && kernel.connectionStatus === 'connected'
        && kernel.status === 'idle');
}"""


class NotebookPage:
    """One notebook, open in JupyterLab.

    Attributes
    ----------
    page
        Playwright's page.
    requests
        Every address that the page asked for, `data:` and `blob:` included.
    console, errors
        What the page wrote to the console, and its uncaught errors.
    """

    def __init__(self, page: Page, lab: Lab, name: str) -> None:
        self.page = page
        self.lab = lab
        self.name = name
        self.requests: list[str] = []
        self.console: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, timeout: float = 90) -> NotebookPage:
        """Load the page and wait until the kernel is ready."""
        self.page.goto(f"{self.lab.url}{self.lab.view}{self.name}?token={self.lab.token}&reset")
        self.page.locator(".jp-NotebookPanel:visible .jp-Notebook").wait_for(timeout=timeout * 1000)
        self.page.wait_for_function(_READY, timeout=timeout * 1000)
        self._wait_for_splash()
        return self

    # --- cells ---

    def cell(self, number: int) -> Locator:
        """The cell of this number, from 0, Markdown cells included."""
        return self.page.locator(".jp-NotebookPanel:visible .jp-Notebook .jp-Cell").nth(number)

    def output(self, number: int) -> Locator:
        """The output area of a cell."""
        return self.cell(number).locator(".jp-Cell-outputArea")

    def text(self, number: int) -> str:
        """What a person reads in a cell's output; empty when there is none."""
        area = self.output(number).locator(".jp-OutputArea-output")
        return "\n".join(area.all_inner_texts())

    def outputs(self, number: int) -> list[dict[str, Any]]:
        """A cell's outputs as they would be saved."""
        script = "(n) => window.jupyterapp.shell.currentWidget.content.widgets[n].model.outputs?.toJSON() ?? []"
        return list(self.page.evaluate(script, number))

    def set_source(self, number: int, source: str) -> None:
        """Replace what a cell holds."""
        script = "([n, s]) => window.jupyterapp.shell.currentWidget.content.widgets[n].model.sharedModel.setSource(s)"
        self.page.evaluate(script, [number, source])

    def select(self, number: int) -> None:
        """Make a cell the active one and scroll to it."""
        script = """async (n) => {
            const notebook = window.jupyterapp.shell.currentWidget.content;
            notebook.deselectAll();
            notebook.activeCellIndex = n;
            await notebook.scrollToItem(n, 'smart');
        }"""
        self.page.evaluate(script, number)

    # --- running ---

    def start(self, number: int) -> None:
        """Start a cell and return at once."""
        self.select(number)
        self.command("notebook:run-cell")

    def run(self, number: int, timeout: float = 120) -> str:
        """Run a cell, wait for its end, and return the text of its output."""
        self.start(number)
        self.wait_idle(timeout)
        return self.text(number)

    def run_all(self, timeout: float = 300) -> None:
        """Run every cell and wait for the end; like in JupyterLab, an error stops it."""
        self.command("notebook:run-all-cells")
        self.wait_idle(timeout)

    def wait_idle(self, timeout: float = 120) -> None:
        """Wait until nothing runs and nothing is queued."""
        self.page.wait_for_function(_IDLE, timeout=timeout * 1000)

    def wait_for_text(self, number: int, text: str, timeout: float = 60) -> None:
        """Wait until a cell's output shows `text`."""
        self.output(number).get_by_text(text).first.wait_for(timeout=timeout * 1000)

    def interrupt(self) -> None:
        """Press the stop button."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")

    def restart(self, timeout: float = 60) -> None:
        """Restart the kernel and wait until it is ready."""
        self.command("notebook:restart-kernel")
        self.wait_idle(timeout)

    def command(self, name: str) -> None:
        """Start one of JupyterLab's commands; `wait_idle` waits for its end."""
        self.page.evaluate(_START, name)

    # --- the rest ---

    def set_theme(self, name: str) -> None:
        """Switch to the "light" or the "dark" theme."""
        theme = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}[name]
        script = "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
        self.page.evaluate(script, theme)
        self.page.wait_for_selector(f'body[data-jp-theme-name="{theme}"]', state="attached")
        self._wait_for_splash()

    def _wait_for_splash(self) -> None:
        """Wait until the picture that JupyterLab lays over the page while it loads is gone."""
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def save(self) -> dict[str, Any]:
        """Save the notebook and return what is then on disk."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        notebook: dict[str, Any] = json.loads((self.lab.root / self.name).read_text(encoding="utf-8"))
        return notebook

    def screenshot(self, name: str, *, cell: int | None = None) -> Path:
        """Write ``tests/browser/shots/NAME.png`` of the page, or of one cell."""
        SHOTS.mkdir(exist_ok=True)
        path = SHOTS / f"{name}.png"
        if cell is None:
            self.page.screenshot(path=path)
        else:
            self.cell(cell).screenshot(path=path)
        return path

    def close(self) -> None:
        """Shut the kernel down."""
        self.page.evaluate("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown()")
