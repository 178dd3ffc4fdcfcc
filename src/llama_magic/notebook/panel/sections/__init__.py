"""The parts of the panel."""

from __future__ import annotations

from llama_magic.notebook.panel.sections.chat import ChatSection
from llama_magic.notebook.panel.sections.compare import CompareSection
from llama_magic.notebook.panel.sections.hardware import HardwareSection
from llama_magic.notebook.panel.sections.model import ModelSection
from llama_magic.notebook.panel.sections.quantize import QuantizeSection
from llama_magic.notebook.panel.sections.serve import ServeSection
from llama_magic.notebook.panel.sections.theatre import TheatreSection

__all__ = ["SECTIONS"]

SECTIONS = (ModelSection, ChatSection, TheatreSection, QuantizeSection, HardwareSection, CompareSection, ServeSection)
