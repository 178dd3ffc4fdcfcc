"""The source of llama.cpp: checked before it is used, unpacked into its own folder only."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import tarfile
from pathlib import Path

import pytest

from llama_magic.errors import DownloadError, InvalidRequestError
from llama_magic.models import source

TOP = "llama_cpp_python-0/vendor/llama.cpp/"


def archive(path: Path, names: list[str], link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return path


def use(patch: pytest.MonkeyPatch, path: Path) -> None:
    version = importlib.metadata.version("llama-cpp-python")
    patch.setenv(source.SOURCE_VARIABLE, str(path))
    patch.setitem(source.HASHES, version, hashlib.sha256(path.read_bytes()).hexdigest())


def test_unpacks_what_is_asked_for(fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{TOP}convert_hf_to_gguf.py", f"{TOP}conversion/base.py", f"{TOP}src/llama.cpp", "llama_cpp_python-0/x"]
    use(monkeypatch, archive(tmp_path / "s.tar.gz", names, f"{TOP}conversion/link"))
    folder = source.llama_cpp_source(source.CONVERTER)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["base.py", "convert_hf_to_gguf.py"]
    assert fresh_home in folder.parents
    monkeypatch.setenv(source.SOURCE_VARIABLE, "/nowhere")
    assert source.llama_cpp_source(source.CONVERTER) == folder, "the second time it is there already"
    with pytest.raises(InvalidRequestError, match="no file"):
        source.llama_cpp_source()


def test_a_changed_file_is_refused(fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "s.tar.gz", [f"{TOP}LICENSE"])
    use(monkeypatch, path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DownloadError, match="SHA-256"):
        source.llama_cpp_source()
    assert not [path for path in fresh_home.rglob("*") if path.is_file()]


def test_nothing_leaves_the_folder(fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, archive(tmp_path / "s.tar.gz", [f"{TOP}LICENSE", f"{TOP}../../../../outside"]))
    with pytest.raises(DownloadError, match="outside of its folder"):
        source.llama_cpp_source()
    assert not [path for path in fresh_home.rglob("*") if path.is_file()]
