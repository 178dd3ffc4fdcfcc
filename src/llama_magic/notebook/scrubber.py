"""A `Divergence` with a slider over its tokens, which needs a kernel while it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_magic.evaluation.divergence_view import place_html
from llama_magic.evaluation.requests import short_name

if TYPE_CHECKING:
    from llama_magic.evaluation.divergence import Divergence

__all__ = ["scrubber"]


def scrubber(found: Divergence) -> Any:
    """Return a widget: the model and a place are chosen, and both lists of likeliest tokens shown."""
    import ipywidgets as widgets

    names = [(short_name(one.model), place) for place, one in enumerate(found.models)]
    model = widgets.Dropdown(options=names, value=0, description="model")
    place = widgets.IntSlider(value=1, min=1, max=len(found.tokens), description="token")
    before = widgets.Button(description="the one before", icon="backward")
    following = widgets.Button(description="next disagreement", icon="forward")
    shown, whole = widgets.HTML(), widgets.HTML(found._repr_html_())

    def show(_change: object = None) -> None:
        shown.value = place_html(found, model.value, place.value - 1)

    def jump(step: int) -> None:
        apart, at = found.disagreements(model.value), place.value - 1
        ahead = [other for other in apart if (other > at if step > 0 else other < at)]
        if ahead:
            place.value = (ahead[0] if step > 0 else ahead[-1]) + 1

    following.on_click(lambda _button: jump(1))
    before.on_click(lambda _button: jump(-1))
    model.observe(show, "value")
    place.observe(show, "value")
    apart = found.disagreements(0)
    place.value = apart[0] + 1 if apart else 1
    show()
    return widgets.VBox([whole, widgets.HBox([model, place, before, following]), shown])
