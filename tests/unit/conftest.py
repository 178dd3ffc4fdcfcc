"""Fixtures of this tier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import FakeServed, Running, Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers over models that answer from a list; they end with the test."""
    made: list[Running] = []

    def begin(*replies: Any, **options: Any) -> Running:
        made.append(Running(FakeServed(replies), **options))
        return made[-1]

    yield begin
    for server in made:
        server.stop()
