"""What the machine offers: processors, memory, devices, and the backends that drive them.

The package can be called as well: ``llama_magic.backends()`` lists the backends.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """The package, as the function of the same name."""

    def __call__(self) -> Any:
        """Return the backends that this llama.cpp knows; see `llama_magic.api.backends.backends`."""
        return importlib.import_module("llama_magic.api.backends").backends()


sys.modules[__name__].__class__ = _Package
