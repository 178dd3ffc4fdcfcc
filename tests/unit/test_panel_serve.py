"""The panel's Serve section without a browser: whose server it is, what is told, and to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llama_magic.api.serve import serve_session, servers, stop_serving
from llama_magic.api.session import Session
from llama_magic.engine.client import get_client, set_client
from llama_magic.notebook.panel.workbench import Workbench
from tests.fakes import FakeClient
from tests.unit.test_panel import View
from tests.waiting import wait_until

HELLO = {"messages": [{"role": "user", "content": "PRIVATE"}]}


@pytest.fixture
def bench(fresh_home: Path, smollm2_path: Path) -> Iterator[Workbench]:
    before = get_client()
    set_client(FakeClient(["The answer."] * 9))
    assert smollm2_path.exists()
    yield Workbench(Session())
    stop_serving()
    set_client(before)


def ask(url: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json=HELLO, headers=headers, trust_env=False).status_code


def test_serve_ask_and_stop(bench: Workbench) -> None:
    one = View(bench, "one")
    one.act("serve.start", port=0, alias="tiny")
    wait_until(lambda: one.state["serve"]["servers"])
    shown = one.state["serve"]["servers"][0]
    assert (shown["model"], shown["local"], shown["mask"]) == ("tiny", True, "")
    assert one.job("serve")["state"] == "running"
    assert ask(shown["url"]) == 200
    wait_until(lambda: [row["state"] for row in one.state["serve"]["servers"][0]["requests"]] == ["done"])
    row = one.state["serve"]["servers"][0]["requests"][0]
    assert (row["endpoint"], row["status"], row["tokens"]) == ("/v1/chat/completions", 200, "4")
    assert "PRIVATE" not in json.dumps(one.messages)
    one.act("serve.stop", port=shown["port"])
    wait_until(lambda: not one.state["serve"]["servers"])
    wait_until(lambda: one.job("serve")["state"] == "done")
    bench.close("one")


def test_a_key_goes_to_the_panel_that_asks(bench: Workbench) -> None:
    one, two = View(bench, "one"), View(bench, "two")
    one.act("serve.start", port=0, key=True)
    wait_until(lambda: two.state["serve"]["servers"])
    server = servers()[0]
    assert server.api_key is not None
    one.act("serve.key", port=server.port)
    told = {"key": {"port": server.port, "value": server.api_key}}
    wait_until(lambda: told in one.messages)
    assert ask(server.url, server.api_key) == 200
    wait_until(lambda: one.state["serve"]["servers"][0]["requests"])
    assert server.api_key not in json.dumps([two.messages, two.state, bench.snapshot()])
    for name in ("one", "two"):
        bench.close(name)


def test_closing_a_panel_stops_its_server_and_no_other(bench: Workbench) -> None:
    one, two = View(bench, "one"), View(bench, "two")
    cell = serve_session(bench.session, port=0)
    wait_until(lambda: [row["port"] for row in two.state["serve"]["servers"]] == [cell.port])
    one.act("serve.start", port=0)
    wait_until(lambda: len(two.state["serve"]["servers"]) == 2)
    own = next(server for server in servers() if server is not cell)
    bench.close("two")
    assert own.running
    bench.close("one")
    wait_until(lambda: not own.running)
    assert cell.running
    assert ask(cell.url) == 200


def test_what_can_not_be_served_is_told(bench: Workbench) -> None:
    one = View(bench, "one")
    taken = serve_session(bench.session, port=0)
    one.act("serve.start", port=taken.port)
    wait_until(lambda: one.job("serve").get("state") == "failed")
    assert f"port {taken.port} is in use" in one.job("serve")["error"]
    bench.close("one")
