"""The stream of a generation, as the API gives it out."""

from llama_magic.engine.stream import GenerationStream

__all__ = ["GenerationStream"]
