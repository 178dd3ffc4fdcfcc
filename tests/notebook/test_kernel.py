"""The magics in a real kernel: completion requests, cell ids, interrupts, queued cells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]

SETUP = f"""
import sys, time
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "src")!r}]
from llama_magic.engine.client import set_client
from tests.fakes import FakeClient

def slow(count, wait=0.02):
    for number in range(count):
        time.sleep(wait)
        yield f"word{{number}} "

client = FakeClient()
set_client(client)
%load_ext llama_magic.notebook
"""


class Kernel:
    def __init__(self) -> None:
        manager, client = start_new_kernel(kernel_name="python3")
        self.manager: KernelManager = manager
        self.client: BlockingKernelClient = client

    def send(self, code: str, cell: str | None = None) -> str:
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
            "stop_on_error": True,
        }  # fmt: skip
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell} if cell else {})
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def reply(self, request: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = self.client.get_shell_msg(timeout=30)
            if message["parent_header"].get("msg_id") == request:
                return dict(message["content"])

    def outputs(self, request: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return found
            found.append(message)

    def wait_for(self, request: str, text: str) -> None:
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") == request and text in str(message["content"]):
                return

    def run(self, code: str, cell: str | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        request = self.send(code, cell)
        return self.reply(request), self.outputs(request)

    def text(self, code: str) -> str:
        reply, outputs = self.run(code)
        assert reply["status"] == "ok", reply
        return "".join(m["content"]["text"] for m in outputs if m["msg_type"] == "stream").strip()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    reply, _ = kernel.run(SETUP)
    assert reply["status"] == "ok", reply
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    ("code", "at", "match"),
    [
        ("%llama lo", None, "load"),
        ("%%llama --te\nbody", 12, "--temp"),
        ("%%llama -m smo", None, "smollm2"),
        ("%%llama --format ", None, "markdown"),
        ("x = 1\n%llama unl", None, "unload"),
        ("%lla", None, "%llama"),
    ],
)
def test_tab_completion(kernel: Kernel, code: str, at: int | None, match: str) -> None:
    at = len(code) if at is None else at
    content = kernel.client.complete(code, at, reply=True, timeout=30)["content"]
    assert match in content["matches"]
    assert content["cursor_end"] == at
    start = code[:at].rpartition(" ")[2] if " " in code[:at] else code[:at]
    assert content["cursor_start"] == at - len(start)


def test_inspection_shows_the_table_of_flags(kernel: Kernel) -> None:
    reply, _ = kernel.run("%%llama?")
    assert "--temp, --temperature X" in str(reply["payload"])


def test_cells_are_told_apart_by_their_id(kernel: Kernel) -> None:
    for text, cell in (("one", "A"), ("two", "B"), ("two!", "B"), ("one!", "A")):
        assert kernel.run(f"%%llama --chat ids\n{text}", cell)[0]["status"] == "ok"
    assert "* is what" in kernel.text("%llama chat")
    code = "from llama_magic.api.session import current_session\nc = current_session().conversations['ids']\n"
    assert kernel.text(code + "print([t.user for t in c.turns], [len(b) for b in c.branches.values()])") == (
        "['one!'] [2]"
    )


def test_the_output_ends_with_a_receipt(kernel: Kernel) -> None:
    _, outputs = kernel.run("%%llama --seed 5\nhi")
    final = [m for m in outputs if m["msg_type"] in ("display_data", "update_display_data")][-1]["content"]
    receipt = final["metadata"]["llama_magic"]
    assert receipt["params"]["seed"] == 5
    assert receipt["llama_cli"].startswith("llama-cli -m ")


def test_the_receipt_in_the_notebook_does_not_name_the_home_folder(
    kernel: Kernel,
) -> None:
    home = Path(kernel.text("import os; print(os.path.expanduser('~'))"))
    model = home / "m.gguf"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(b"GGUF")
    _, outputs = kernel.run(f"%%llama -m {model}\nhi")
    receipt = [m for m in outputs if m["msg_type"] in ("display_data", "update_display_data")][-1]["content"][
        "metadata"
    ]["llama_magic"]
    assert str(home) not in str(receipt)
    assert receipt["path"] == "~/m.gguf"


def test_errors_are_one_line_and_stop_the_queue(kernel: Kernel) -> None:
    # Only cells that wait when the error comes are taken back, so both must be there before it does.
    kernel.send("time.sleep(0.5)")
    first, second = kernel.send("%%llama --temp abc\nhi"), kernel.send("1 + 1")
    assert kernel.reply(first)["status"] == "error"
    assert kernel.reply(second)["status"] == "aborted"
    outputs = kernel.outputs(first)
    texts = [m["content"]["text"] for m in outputs if m["msg_type"] == "stream"]
    assert texts == ["UsageError: --temp takes a number, 0 or more; got 'abc'\n"]
    assert not [m for m in outputs if m["msg_type"] == "error"]


def test_interrupt_keeps_the_text_and_stops_the_queue(kernel: Kernel) -> None:
    kernel.run("client.replies.append(slow(500))")
    first = kernel.send("%%llama --out a\nhi")
    second = kernel.send("ran = True")
    kernel.wait_for(first, "word3")
    start = time.monotonic()
    kernel.manager.interrupt_kernel()
    reply = kernel.reply(first)
    assert time.monotonic() - start < 0.5
    assert (reply["status"], reply["ename"]) == ("error", "GenerationInterrupted")
    assert kernel.reply(second)["status"] == "aborted"
    outputs = kernel.outputs(first)
    final = [m for m in outputs if m["msg_type"] in ("display_data", "update_display_data")][-1]["content"]
    assert "interrupted" in final["data"]["text/html"]
    assert "word3" in final["data"]["text/html"]
    (error,) = [m["content"] for m in outputs if m["msg_type"] == "error"]
    assert len(error["traceback"]) == 1
    assert "what was written is kept" in error["traceback"][0]
    assert kernel.text("print(a.finish_reason, a.text[:6])") == "interrupted word0"
    assert kernel.run("%%llama\nhi")[0]["status"] == "ok"


def test_a_burst_of_interrupts_leaves_the_kernel_usable(kernel: Kernel) -> None:
    for _ in range(10):
        kernel.run("client.replies.append(slow(500))")
        request = kernel.send("%%llama --out a\nhi")
        kernel.wait_for(request, "word1")
        for _ in range(3):
            kernel.manager.interrupt_kernel()
        assert kernel.reply(request)["status"] == "error"
        kernel.outputs(request)
        assert (
            kernel.text("import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)") == "True"
        )
        assert kernel.run("%%llama --out b\nhi")[0]["status"] == "ok"
        assert kernel.text("print(b.text)") == "ok"


def test_a_worker_waits_for_jobs_while_no_cell_runs(kernel: Kernel, tmp_path: Path) -> None:
    process = psutil.Process(int(kernel.text("import os; print(os.getpid())")))

    def waiting() -> list[int]:
        running = (child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE)
        return [child.pid for child in running if "llama_magic.worker" in child.cmdline()]

    kernel.text("%reload_ext llama_magic.notebook")
    wait_until(waiting, 20)
    (first,) = waiting()
    kernel.text("1")
    # what the environment says now holds for the next job, so the one that waits is replaced
    kernel.text("os.environ['HF_TOKEN'] = 'hf_new'")
    wait_until(lambda: len(waiting()) == 1 and waiting() != [first], 20)
    kernel.text("%unload_ext llama_magic.notebook")
    assert waiting() == []
    # a cell that follows at once has the processor for itself, and the worker comes after it
    kernel.text("%load_ext llama_magic.notebook")
    assert kernel.text("time.sleep(2)\nfrom llama_magic.engine import spare\nprint(len(spare._waiting))") == "0"
    wait_until(waiting, 20)
    # so is what first commands need, though a worker waits already; a cell that asked would hold it up
    kernel.text(
        "import pathlib, threading, llama_magic.notebook as extension\n"
        "def look():\n    while not set(extension._EARLY) <= set(sys.modules): time.sleep(0.02)\n"
        f"    pathlib.Path({str(tmp_path / 'there')!r}).touch()\n"
        "threading.Thread(target=look, daemon=True).start()"
    )
    wait_until((tmp_path / "there").exists, 20)
    kernel.text("%unload_ext llama_magic.notebook")
