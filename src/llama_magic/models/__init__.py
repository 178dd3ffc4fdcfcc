"""Model references, files and what they hold. Everything here may be imported in the kernel.

The package can be called as well: ``llama_magic.models()`` lists the models on this machine.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """The package, as the function of the same name."""

    def __call__(self) -> Any:
        """Return the models on this machine; see `llama_magic.api.library.models`."""
        return importlib.import_module("llama_magic.api.library").models()


sys.modules[__name__].__class__ = _Package
