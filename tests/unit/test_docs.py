"""The pages of docs/ say what the code does, and the links in them lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])


def test_the_page_of_magics_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    saved = (REPOSITORY / "docs" / "magics.md").read_text(encoding="utf-8")
    assert saved == module.magics_page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_architecture_names_every_package() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = REPOSITORY / "src" / "llama_magic"
    for package in source.iterdir():
        if (package / "__init__.py").exists():
            assert f"`{package.name}/`" in text, package.name


def test_flags_in_the_readme_exist() -> None:
    from llama_magic.notebook.flags import by_name
    from llama_magic.notebook.subcommands import SUBCOMMANDS

    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for line in re.findall(r"^%%llama(.*)$", text, re.MULTILINE):
        for word in line.split():
            assert not word.startswith("-") or word in by_name(), word
    for subcommand in re.findall(r"(?<!%)%llama ([a-z]+)", text):
        assert subcommand in SUBCOMMANDS, subcommand
