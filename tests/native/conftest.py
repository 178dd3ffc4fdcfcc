"""The native tier: real llama.cpp, SmolLM2, a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_magic.engine.client import EngineClient
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.native import ContextSettings, LogCapture, NativeModel
from tests.gguf import without_chat_template


@pytest.fixture(scope="session")
def log() -> LogCapture:
    capture = LogCapture()
    capture.install()
    return capture


@pytest.fixture(scope="session")
def model(smollm2_path: Path, log: LogCapture) -> Iterator[NativeModel]:
    loaded = NativeModel(str(smollm2_path), log)
    yield loaded
    loaded.close()


@pytest.fixture
def runtime(smollm2_path: Path, log: LogCapture) -> Iterator[ModelRuntime]:
    """A model with contexts of 1,024 tokens of its own."""
    made = ModelRuntime(
        NativeModel(str(smollm2_path), log),
        ContextSettings(n_ctx=1024, n_seq_max=1, n_threads=2, n_threads_batch=2),
        log,
    )
    yield made
    made.close()


@pytest.fixture
def spec(smollm2_path: Path) -> ModelSpec:
    return ModelSpec(str(smollm2_path), "smollm2", LoadOptions(n_ctx=2048))


@pytest.fixture
def client() -> Iterator[EngineClient]:
    made = EngineClient()
    yield made
    made.close()


@pytest.fixture(scope="session")
def base_model_path(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 without its chat template: a base model."""
    return without_chat_template(smollm2_path, tmp_path_factory.mktemp("base") / "base.gguf")
