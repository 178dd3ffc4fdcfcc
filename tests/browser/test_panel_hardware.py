"""Backends by hand: built with a log that is seen, used, layers put on a device, and the fastest settings found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from llama_magic.api.backends import backends
from tests.browser.conftest import OpenNotebook
from tests.conftest import skip_or_fail
from tests.tiny import tiny_llama


def tab(page: Page, name: str) -> Locator:
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_backend_is_built_used_and_given_layers(open_notebook: OpenNotebook, page: Page, tmp_path: Path) -> None:
    row = backends()["rpc"]
    if row.state not in ("built", "buildable", "active"):
        skip_or_fail(f"RPC can not be built here: {row.detail}")
    home = tmp_path / "home"
    home.mkdir()
    notebook = open_notebook(
        [
            f"import os\nos.environ['LLAMA_MAGIC_HOME'] = {str(home)!r}",
            "%load_ext llama_magic",
            "%llama panel hardware",
            "1",
        ]
    )
    from llama_magic.models.places import data_folder

    if (data_folder() / "llama.cpp").exists():  # the source, where another test fetched it
        (home / "llama.cpp").symlink_to(data_folder() / "llama.cpp")
    tiny_llama(notebook.lab.root / "tiny-F32.gguf", still_query=False)
    for number in range(3):
        notebook.run(number)
    build(page)
    body = page.get_by_role("tabpanel", name="Hardware")
    rpc = body.locator(".lm-backend").filter(has_text="devices of other machines")
    rpc.get_by_role("button", name="Use RPC").click()
    expect(rpc).to_contain_text("✓ in use", timeout=60_000)
    # a host that a cell starts and adds is seen in the panel
    notebook.set_source(3, "%llama rpc serve --threads 1")
    endpoint = re.search(r"127\.0\.0\.1:\d+", notebook.run(3))
    assert endpoint
    notebook.set_source(3, f"%llama rpc add {endpoint[0]}")
    notebook.run(3)
    expect(rpc.locator(".lm-device-row")).to_contain_text("RPC0", timeout=30_000)
    layers(page)
    tune(page)
    assert notebook.errors == []


def build(page: Page) -> None:
    body = page.get_by_role("tabpanel", name="Hardware")
    rpc = body.locator(".lm-backend").filter(has_text="devices of other machines")
    expect(rpc).to_contain_text("can be built", timeout=60_000)
    rpc.get_by_role("button", name="Build RPC").click()
    log = body.locator(".lm-buildlog")
    expect(log).to_be_visible(timeout=60_000)
    expect(log).to_contain_text(re.compile(r"step \d+ of \d+"), timeout=120_000)
    early = len(log.inner_text().splitlines())
    expect(rpc).to_contain_text("ready", timeout=240_000)
    assert len(log.inner_text().splitlines()) > early
    expect(body.get_by_role("button", name="Build BLAS").or_(body.get_by_text("BLAS")).first).to_be_visible()


def layers(page: Page) -> None:
    """The slider moves layers, and each device's memory follows."""
    body = tab(page, "Model")
    search = body.get_by_label("Search models")
    search.fill("./tiny-F32.gguf")
    search.press("Enter")
    slider = body.get_by_label("Layers on the accelerator")
    expect(slider).to_be_enabled(timeout=60_000)
    device = body.locator(".lm-device").filter(has_text="RPC0")
    part = device.locator(".lm-part").first
    before = part.get_attribute("title") or ""  # as many layers as fit: all three
    for count in (1, 3):
        slider.fill(str(count))
        expect(body.locator(".lm-line-code").first).to_contain_text(f"-ngl {count}")
        expect(part).not_to_have_attribute("title", before, timeout=30_000)
        expect(body.locator(".lm-card .lm-mix-out")).to_have_text(f"{count} of 3")
        before = part.get_attribute("title") or ""
        assert before.startswith("weights: ")
    body.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator(".lm-chip")).to_contain_text("RPC0", timeout=60_000)


def tune(page: Page) -> None:
    body = tab(page, "Hardware")
    body.get_by_role("button", name="Tune", exact=True).click()
    card = body.locator(".lm-card").filter(has_text="Fastest settings")
    expect(card.locator(".lm-job-running")).to_be_visible()
    expect(card.locator("table").first).to_be_visible(timeout=180_000)
    expect(card).to_contain_text("tok/s")
