"""What a speed measurement is: llama-bench's tests, and what a worker is asked for and answers."""

from __future__ import annotations

from dataclasses import dataclass

from llama_magic.errors import InvalidRequestError
from llama_magic.models.options import LoadOptions, ModelSpec

__all__ = [
    "CONTEXT_OPTIONS",
    "CloseLanesRequest",
    "LaneFacts",
    "OpenLaneRequest",
    "SpeedTest",
    "TimeLaneRequest",
    "model_options",
]


@dataclass(frozen=True, slots=True)
class SpeedTest:
    """A test of llama-bench: process a prompt, generate, or one after the other, behind tokens that are there already.

    Attributes
    ----------
    n_prompt, n_gen
        Tokens processed in batches, and then one by one.
    n_depth
        Tokens in the cache before; filling it is not timed.
    """

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0

    def __post_init__(self) -> None:
        if min(self.n_prompt, self.n_gen, self.n_depth) < 0 or not self.n_tokens:
            raise InvalidRequestError(
                f"a test has a prompt or generates, and counts from 0; got {self.n_prompt}, {self.n_gen}, "
                f"depth {self.n_depth}"
            )

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt + self.n_gen

    @property
    def n_ctx(self) -> int:
        """Tokens that the context must hold."""
        return self.n_prompt + self.n_gen + self.n_depth

    @property
    def name(self) -> str:
        """As llama-bench calls it: ``pp512``, ``tg128``, ``pp512+tg128 @ d1024``."""
        parts = ([f"pp{self.n_prompt}"] if self.n_prompt else []) + ([f"tg{self.n_gen}"] if self.n_gen else [])
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")


@dataclass(frozen=True, slots=True)
class OpenLaneRequest:
    """Load a model, make a context for one test and warm it up; the result is its `LaneFacts`.

    Attributes
    ----------
    lane
        A number to call it by.
    spec, test
        The model with its options, and the test. The context is as large as the test needs.
    as_loaded
        None: as llama-bench makes its context. "solo" and "chat": as `load` makes those of cells that stand alone
        and of conversations, which differ in flash attention.
    warmup
        Run the test once before anything is timed.
    force
        Do not ask whether there is enough memory.
    """

    lane: int
    spec: ModelSpec
    test: SpeedTest
    as_loaded: str | None = None
    warmup: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True)
class TimeLaneRequest:
    """Run a lane's test once; the result is its time in nanoseconds."""

    lane: int


@dataclass(frozen=True, slots=True)
class CloseLanesRequest:
    """Close lanes, and models that no other lane uses; all where `lanes` is None. The result is None."""

    lanes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """What a worker knows of a lane.

    Attributes
    ----------
    model_type, model_size, model_n_params
        llama.cpp's description, bytes of the tensors, parameters.
    n_layer
        Layers that can be offloaded, the output layer included.
    n_threads
        Threads in use.
    devices
        Devices that hold the weights.
    cpu_info, gpu_info, backends
        As llama-bench tells them: descriptions of processors and accelerators, names of backends.
    build_commit
        llama.cpp's commit.
    warmup_ns
        Nanoseconds that the warm-up took; 0 without one.
    """

    model_type: str
    model_size: int
    model_n_params: int
    n_layer: int
    n_threads: int
    devices: tuple[str, ...]
    cpu_info: str
    gpu_info: str
    backends: str
    build_commit: str
    warmup_ns: int = 0


#: What of the load options belongs to the context alone: lanes that differ only in these share one loaded model.
CONTEXT_OPTIONS = (
    "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "flash_attn", "cache_type_k", "cache_type_v",
    "offload_kqv", "op_offload", "swa_full", "rope_scaling", "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx",
    "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_slow", "yarn_beta_fast", "lora", "memory_budget",
)  # fmt: skip


def model_options(options: LoadOptions) -> LoadOptions:
    """Return what of the options decides how the weights are loaded."""
    plain = LoadOptions()
    return options.replace(**{name: getattr(plain, name) for name in CONTEXT_OPTIONS})
