"""Bytes to text: whole characters, stop strings across token borders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_magic.inference.text import TextAssembler


def run(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], str, bool]:
    assembler = TextAssembler(stop)
    shown = []
    for piece in pieces:
        assembler.feed(piece)
        shown.append(assembler.take())
        if assembler.stopped:
            break
    shown.append(assembler.finish())
    return shown, assembler.text, assembler.stopped


def test_half_a_character_is_never_shown() -> None:
    data = "naïve 🦙 日本".encode()
    shown, text, _ = run([data[i : i + 1] for i in range(len(data))])
    assert text == "naïve 🦙 日本"
    assert "�" not in "".join(shown)


def test_bytes_that_are_no_text_become_replacement_characters_at_the_end() -> None:
    _, text, _ = run([b"ok ", "🦙".encode()[:2]])
    assert text == "ok �"


def test_a_stop_string_across_tokens_is_not_shown() -> None:
    shown, text, stopped = run([b"one", b" E", b"N", b"D two"], ("END",))
    assert (text, stopped) == ("one ", True)
    assert shown == ["one", " ", "", "", ""]


def test_what_only_began_like_a_stop_string_is_shown() -> None:
    _, text, stopped = run([b"an EN", b"GLISH word"], ("END",))
    assert (text, stopped) == ("an ENGLISH word", False)


def test_the_first_of_two_stop_strings_ends_it() -> None:
    _, text, _ = run([b"abcXdefY"], ("Y", "X"))
    assert text == "abc"


def test_a_stop_string_held_back_is_shown_when_the_model_ends() -> None:
    _, text, stopped = run([b"the EN"], ("END",))
    assert (text, stopped) == ("the EN", False)


@given(
    st.text(max_size=60),
    st.lists(st.integers(1, 5), max_size=60),
    st.lists(st.text(min_size=1, max_size=3), max_size=3),
)
def test_any_cut_gives_the_text_up_to_the_first_stop(text: str, cuts: list[int], stops: list[str]) -> None:
    data, pieces, at = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode(), [], 0
    for cut in [*cuts, len(data) + 1]:
        pieces.append(data[at : at + cut])
        at += cut
    plain = data.decode()
    _, got, stopped = run(pieces, tuple(stops))
    places = [plain.find(stop) for stop in stops if stop in plain]
    if places:
        assert stopped
        # A stop that ends earlier may hide one that begins earlier; either way nothing past a stop is shown.
        assert plain.startswith(got)
        assert not any(stop in got for stop in stops)
    else:
        assert (got, stopped) == (plain, False)
