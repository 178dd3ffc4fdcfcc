"""Results in a row, by place and by name: what calls give that were asked for several things at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

__all__ = ["Several", "Views"]


class Views(Protocol):
    """How results look."""

    def text_of(self, items: Any) -> str:
        """Return lines for a terminal."""

    def html_of(self, items: Any) -> str:
        """Return HTML."""

    def figures(self, item: Any) -> dict[str, Any]:
        """Return a result as a row of a table."""


class Several:
    """A sequence of results, also by name: ``plans["Q4_K_M"]``.

    Attributes
    ----------
    items
        The results.
    """

    __slots__ = ()
    items: tuple[Any, ...]
    _views: ClassVar[Views]

    @staticmethod
    def _names(item: Any) -> tuple[str, ...]:
        """Return what a result is called; the first is its name in `to_dict`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, which: int | str) -> Any:
        if not isinstance(which, str):
            return self.items[which]
        for item in self.items:
            if which in self._names(item) or which.upper() in self._names(item):
                return item
        raise KeyError(which)

    def __repr__(self) -> str:
        return self._views.text_of(self.items)

    def _repr_html_(self) -> str:
        return self._views.html_of(self.items)

    def to_dict(self) -> dict[str, Any]:
        """Return the results by their names."""
        return {self._names(item)[0]: item.to_dict() for item in self.items}

    def to_pandas(self) -> Any:
        """Return a row for each result as a `pandas.DataFrame`."""
        import pandas as pd

        return pd.DataFrame([self._views.figures(item) for item in self.items])
