"""When chunks are sent, by a clock that the test moves."""

from __future__ import annotations

import pytest

from llama_magic.inference.pacing import LONGEST_S, SHORTEST_S, Pace


def gaps(speeds: list[float]) -> list[tuple[float, int]]:
    """Seconds and tokens of each chunk, for a model that makes so many tokens a second, one figure for each chunk."""
    pace, now, wait, carried, found = Pace(0.0), 0.0, SHORTEST_S, 0.0, []
    for speed in speeds:
        now += wait
        made = carried + speed * wait
        tokens, carried = int(made), made - int(made)
        found.append((wait, tokens))
        wait = pace.sent(tokens, now)
    return found


@pytest.mark.parametrize("speed", [2, 9, 30, 60, 106, 400, 5000])
def test_at_least_eight_updates_a_second_and_at_most_twenty(speed: float) -> None:
    for wait, _ in gaps([speed] * 60):
        assert SHORTEST_S <= wait <= LONGEST_S < 1 / 8


def test_chunks_follow_the_tokens_when_the_model_slows_down() -> None:
    found = gaps([100.0] * 40 + [93.0] * 100)
    before = sum(tokens for _, tokens in found[20:40]) / 20
    after = sum(tokens for _, tokens in found[100:]) / 40
    assert after == pytest.approx(before, rel=0.03)


def test_the_clock_decides_where_the_model_becomes_much_slower() -> None:
    assert {round(wait, 3) for wait, tokens in gaps([100.0] * 40 + [20.0] * 100)[100:]} == {LONGEST_S}
