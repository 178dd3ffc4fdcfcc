"""Locks between processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from llama_magic.locks import file_lock


def test_the_second_waits_or_goes_on_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "one.lock"
    asked = []
    other = FileLock(str(path))

    def waiting() -> None:
        asked.append(other.is_locked)
        other.release()

    with file_lock(path, None) as alone:
        assert alone
        with file_lock(path, None) as second:
            assert not second
    other.acquire()
    with file_lock(path, waiting) as alone:
        assert alone
    assert asked == [True]


def test_a_wait_can_be_given_up(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    path = tmp_path / "one.lock"
    with file_lock(path, None), pytest.raises(KeyboardInterrupt), file_lock(path, stop):
        pytest.fail("it was held by another")
    with file_lock(path, None) as alone:
        assert alone


def test_an_error_passes_and_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), file_lock(tmp_path / "one.lock", None):
        raise OSError("mine")
    with file_lock(tmp_path / "one.lock", None) as alone:
        assert alone


def test_no_place_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with file_lock(tmp_path / "file" / "one.lock", None) as alone:
        assert alone
