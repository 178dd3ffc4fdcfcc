"""Model references."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_magic.errors import DownloadError, ModelNotFoundError
from llama_magic.models.references import choose_file
from llama_magic.models.resolve import HubReference, complete_refs, is_model_ref, parse_hub, resolve

FILES = [
    "README.md",
    "m-Q2_K.gguf",
    "m-Q4_K_M.gguf",
    "m.Q8_0.gguf",
    "mmproj-F16.gguf",
    "big-IQ4_XS-00001-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("hf:owner/repo", HubReference("owner/repo")),
        ("owner/repo:q4_0", HubReference("owner/repo", None, "q4_0")),
        ("hf:owner/repo/dir/m.gguf", HubReference("owner/repo", "dir/m.gguf")),
        ("smollm2", None),
        ("./x.gguf", None),
        ("a/b/c/d", None),
    ],
)
def test_parse_hub(ref: str, expected: HubReference | None) -> None:
    assert parse_hub(ref) == expected


@pytest.mark.parametrize(
    ("quant", "file"),
    [(None, "m-Q4_K_M.gguf"), ("q4_k_m", "m-Q4_K_M.gguf"), ("Q8_0", "m.Q8_0.gguf"), ("q2_k", "m-Q2_K.gguf"),
     ("IQ4_XS", "big-IQ4_XS-00001-of-00002.gguf")],
)  # fmt: skip
def test_choose_file_as_llama_cpp_does(quant: str | None, file: str) -> None:
    assert choose_file(FILES, quant, "o/r") == file


def test_choose_file_without_the_default_takes_the_first() -> None:
    assert choose_file(["z.Q8_0.gguf", "a.Q5_0.gguf"], None, "o/r") == "a.Q5_0.gguf"


def test_choose_file_lists_what_there_is() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no Q4_K_S.*Did you mean Q4_K_M\?.*Q8_0"):
        choose_file(FILES, "Q4_K_S", "o/r")
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        choose_file(["README.md"], None, "o/r")


def test_paths(tmp_path: Path) -> None:
    model = tmp_path / "llama-7b.gguf"
    model.write_bytes(b"GGUF")
    assert resolve(str(model)) == str(model)
    with pytest.raises(ModelNotFoundError, match=r"Did you mean llama-7b\.gguf"):
        resolve(str(tmp_path / "lama-7b.gguf"))
    with pytest.raises(ModelNotFoundError, match=r"is a folder.*llama-7b\.gguf"):
        resolve(str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="Did you mean smollm2"):
        resolve("smolm2")


def test_offline_names_the_reason() -> None:
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        resolve("nobody/nothing-GGUF")


def test_words_that_look_like_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "texts").mkdir(parents=True)
    assert all(map(is_model_ref, ["smollm2", "x.gguf", "hf:a/b", "a/b:Q4_0"]))
    assert not any(map(is_model_ref, ["data/texts", "hello", "what?"]))


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.gguf").touch()
    (tmp_path / "notes.txt").touch()
    assert complete_refs("") == ["smollm2", "models/"]
    assert complete_refs("smo") == ["smollm2"]
    assert complete_refs("models/") == ["models/a.gguf"]
