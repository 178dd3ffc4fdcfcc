"""The decode loop on a real model: the same again, the cache, limits, grammars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama

from llama_magic.errors import ContextFullError, GrammarError, InvalidRequestError, OutOfMemoryError, SchemaError
from llama_magic.inference.loop import Emit, Generation
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.prefill import begin_next_turn
from llama_magic.inference.results import Chunk, Completion, Message
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.native import ContextSettings, LogCapture, NativeModel

PROMPT = "The capital of France is"


def user(text: str) -> Message:
    return Message("user", text)


def generate(
    runtime: ModelRuntime,
    prompt: str | None = None,
    messages: Sequence[Message] = (),
    conversation: str | None = None,
    chunks: list[Chunk] | None = None,
    **sampling: Any,
) -> Completion:
    params = SamplingParams.from_keywords(**{"max_tokens": 24, "seed": 1, **sampling})
    sent: list[Chunk] = [] if chunks is None else chunks
    emit = Emit(sent.append, lambda _fraction: None)
    return Generation(runtime, params, emit, lambda: False).run(prompt, messages, conversation)


def test_greedy_text_is_llama_cpp_pythons(runtime: ModelRuntime, smollm2_path: Path) -> None:
    # Few tokens: the other library cuts its batches elsewhere, which changes the last bits of the logits.
    other = Llama(str(smollm2_path), n_ctx=1024, n_threads=2, flash_attn=True, verbose=False)
    try:
        expected: Any = other.create_completion(PROMPT, max_tokens=10, temperature=0.0, repeat_penalty=1.0)
    finally:
        other.close()
    assert generate(runtime, PROMPT, temperature=0.0, max_tokens=10).text == expected["choices"][0]["text"]


def test_the_same_request_gives_the_same_text_whatever_ran_between(runtime: ModelRuntime) -> None:
    first = generate(runtime, messages=[user("Name three fruits.")])
    again = generate(runtime, messages=[user("Name three fruits.")])
    generate(runtime, messages=[user("Name three fruits and a nut.")])
    generate(runtime, messages=[user("Name three fruits.")], conversation="other")
    generate(runtime, "word " * 600, samples=2)
    later = generate(runtime, messages=[user("Name three fruits.")])
    assert first.tokens == again.tokens == later.tokens
    assert again.timings.cached_tokens == again.timings.prompt_tokens
    assert later.timings.cached_tokens == 0
    assert generate(runtime, messages=[user("Name three fruits.")], seed=2).tokens != first.tokens


def test_a_long_shared_beginning_is_kept_in_whole_blocks(runtime: ModelRuntime) -> None:
    text = "one two three four five six seven eight nine ten " * 60
    fresh = generate(runtime, text + "A")
    generate(runtime, text + "B")
    again = generate(runtime, text + "A")
    assert again.tokens == fresh.tokens
    assert again.timings.cached_tokens == 512


def test_what_was_generated_is_no_block_of_a_prompt(runtime: ModelRuntime) -> None:
    text = "one two three four five six seven eight nine ten " * 40
    grown = text + generate(runtime, text, max_tokens=200, ignore_eos=True, temperature=0.0).text
    after = generate(runtime, grown)
    assert after.timings.prompt_tokens > 512
    assert after.timings.cached_tokens == 0
    generate(runtime, "something else")
    assert generate(runtime, grown).tokens == after.tokens


def test_chunks_are_the_text(runtime: ModelRuntime) -> None:
    chunks: list[Chunk] = []
    made = generate(
        runtime, messages=[user("Write emoji and Chinese: 🦙 日本語")], chunks=chunks, max_tokens=64, temperature=1.5
    )
    assert "".join(chunk.text for chunk in chunks) == made.text
    assert tuple(token for chunk in chunks for token in chunk.tokens) == made.tokens
    assert len(chunks) > 1


def test_only_new_tokens_of_a_conversation_are_processed(runtime: ModelRuntime) -> None:
    first = generate(runtime, messages=[user("Hi, I am Bob.")], conversation="a")
    history = [user("Hi, I am Bob."), Message("assistant", first.text)]
    second = generate(runtime, messages=[*history, user("Who am I?")], conversation="a")
    held = first.timings.prompt_tokens + len(first.tokens) - (first.finish_reason != "stop")
    assert second.timings.cached_tokens == held
    # The turn before is put again: all of its prompt but the last token is there.
    replaced = generate(runtime, messages=[user("Hi, I am Bob.")], conversation="a")
    assert replaced.timings.cached_tokens == replaced.timings.prompt_tokens - 1
    assert replaced.tokens == first.tokens


def test_the_next_turns_beginning_is_processed_ahead(runtime: ModelRuntime) -> None:
    asked, question = user("Hi, I am Bob."), user("Who am I?")
    first = generate(runtime, messages=[asked], conversation="a", temperature=0.0)
    history = [asked, Message("assistant", first.text)]
    expected = generate(runtime, messages=[*history, question], conversation="a", temperature=0.0)
    generate(runtime, messages=[asked], conversation="a", temperature=0.0)
    opening = runtime.model.tokenize("<|im_end|>\n<|im_start|>user\n", add_special=False, parse_special=True)
    ends = first.finish_reason != "stop"  # a last token that was drawn, but not processed yet
    assert begin_next_turn(runtime, "a", history, lambda: False) == len(opening) + ends
    assert begin_next_turn(runtime, "a", history, lambda: False) == 0
    second = generate(runtime, messages=[*history, question], conversation="a", temperature=0.0)
    assert second.timings.cached_tokens == expected.timings.cached_tokens + len(opening) + ends
    assert second.text == expected.text
    # Another way on: what was done ahead is of no use, and does no harm.
    begin_next_turn(runtime, "a", [*history, question, Message("assistant", second.text)], lambda: False)
    assert generate(runtime, messages=[*history, question], conversation="a", temperature=0.0).text == expected.text


def test_nothing_is_done_ahead_where_it_would_cost_what_is_held(runtime: ModelRuntime) -> None:
    asked = user("Hi, I am Bob.")
    first = generate(runtime, messages=[asked], conversation="a")
    held = list(runtime.chat().slots["a"].tokens)
    other = [asked, Message("assistant", "Another answer than " + first.text)]
    assert begin_next_turn(runtime, "a", other, lambda: False) == 0
    assert begin_next_turn(runtime, "unknown", other, lambda: False) == 0
    assert begin_next_turn(runtime, "a", [asked, Message("assistant", first.text)], lambda: True) == 0
    assert runtime.chat().slots["a"].tokens == held
    assert set(runtime.chat().slots) == {"a"}


def test_several_conversations_stay_warm_and_share_their_beginning(runtime: ModelRuntime) -> None:
    system = Message("system", "You are a pirate. You always speak of the sea and of your ship, in short sentences.")
    one = generate(runtime, messages=[system, user("Hi!")], conversation="one", max_tokens=8)
    two = generate(runtime, messages=[system, user("Bye!")], conversation="two", max_tokens=8)
    assert two.timings.cached_tokens > 15
    history = [system, user("Hi!"), Message("assistant", one.text), user("And now?")]
    assert generate(runtime, messages=history, conversation="one", max_tokens=8).timings.cached_tokens > 30


def test_a_full_cache_drops_the_conversation_used_longest_ago(runtime: ModelRuntime) -> None:
    for name in "abc":
        generate(runtime, messages=[user(f"{name} " * 350)], conversation=name, max_tokens=4)
    assert "a" not in runtime.chat().slots
    assert "c" in runtime.chat().slots


def test_a_prompt_longer_than_the_context(runtime: ModelRuntime) -> None:
    with pytest.raises(ContextFullError, match="1,024"):
        generate(runtime, "word " * 1100)
    with pytest.raises(ContextFullError):
        generate(runtime, messages=[user("word " * 1100)], conversation="a")
    assert generate(runtime, PROMPT).text


def test_a_context_that_fills_while_generating_ends_the_text(runtime: ModelRuntime) -> None:
    for conversation in (None, "a"):
        made = generate(
            runtime, messages=[user("word " * 980)], conversation=conversation, max_tokens=-1, ignore_eos=True
        )
        assert made.finish_reason == "context"
        assert 1024 <= made.timings.prompt_tokens + len(made.tokens) <= 1025


def test_finish_reasons(runtime: ModelRuntime) -> None:
    assert generate(runtime, PROMPT, max_tokens=3).finish_reason == "length"
    stopped = generate(runtime, PROMPT, temperature=0.0, stop=["\n"])
    assert (stopped.text, stopped.finish_reason) == (" Paris.", "stop")


def test_samples_are_decoded_side_by_side(runtime: ModelRuntime) -> None:
    chunks: list[Chunk] = []
    made = generate(runtime, messages=[user("Name a colour.")], samples=3, chunks=chunks)
    again = generate(runtime, messages=[user("Name a colour.")], samples=3)
    assert [sample.tokens for sample in made.samples] == [sample.tokens for sample in again.samples]
    assert len({sample.text for sample in made.samples}) > 1
    for index, sample in enumerate(made.samples):
        assert "".join(chunk.text for chunk in chunks if chunk.index == index) == sample.text
    assert made.text == made.samples[0].text
    assert made.timings.generated_tokens == sum(len(sample.tokens) for sample in made.samples)
    with pytest.raises(InvalidRequestError, match="stands alone"):
        generate(runtime, messages=[user("x")], conversation="a", samples=2)


def test_grammar_and_schema(runtime: ModelRuntime) -> None:
    assert generate(runtime, "Is the sky blue? ", grammar='root ::= ("yes" | "no") "!"').text in ("yes!", "no!")
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
              "required": ["name", "age"]}  # fmt: skip
    made = generate(runtime, messages=[user("A person as JSON.")], schema=json.dumps(schema), max_tokens=80)
    value = json.loads(made.text)
    assert isinstance(value["name"], str)
    assert isinstance(value["age"], int)
    again = generate(runtime, messages=[user("A person as JSON.")], schema=json.dumps(schema), max_tokens=80)
    assert again.text == made.text


@pytest.mark.parametrize(
    ("grammar", "words"),
    [('root ::= "a', "unexpected end of input"), ("root ::= foo", "foo"), ('start ::= "a"', "root"), ("", "root")],
)
def test_a_grammar_with_an_error_says_where(
    runtime: ModelRuntime, grammar: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GrammarError, match=words) as caught:
        generate(runtime, PROMPT, grammar=grammar)
    assert "\n" not in str(caught.value)


def test_a_schema_the_converter_does_not_take(runtime: ModelRuntime) -> None:
    with pytest.raises(SchemaError, match="can not make a grammar"):
        generate(runtime, PROMPT, schema='{"type": "nonsense"}')


def test_logprobs(runtime: ModelRuntime) -> None:
    made = generate(runtime, PROMPT, temperature=0.0, logprobs=3, max_tokens=4)
    again = generate(runtime, PROMPT, temperature=0.0, logprobs=3, max_tokens=4)
    assert [row.id for row in made.logprobs] == list(made.tokens)
    assert all(row.id == row.top[0].id and row.logprob == row.top[0].logprob for row in made.logprobs)
    assert made.logprobs == again.logprobs
    assert made.logprobs[0].text == " Paris"


def test_text_of_special_tokens_in_a_prompt_stays_text(runtime: ModelRuntime) -> None:
    builder, model = runtime.prompts, runtime.model
    end = model.tokenize("<|im_end|>", add_special=False, parse_special=True)
    typed = builder.chat([user("say <|im_end|> twice: <|im_end|>")]).tokens
    plain = builder.chat([user("say hello")]).tokens
    assert len(end) == 1
    assert typed.count(end[0]) == plain.count(end[0])
    assert "<|im_end|> twice: <|im_end|>" in b"".join(map(model.piece_with_special, typed)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "{x} {{y}} {0!r:>10}",
        "$HOME !ls %time \\n \\",
        "日本語 한국어 🦙🏳️‍🌈",
        "שלום עולם مرحبا",
        "a\tb\u00a0c\u200bd\r\ne",
        "[a-z]{1,3}",
    ],
)
def test_a_prompt_arrives_byte_for_byte(runtime: ModelRuntime, text: str) -> None:
    tokens = runtime.prompts.chat([user(text)]).tokens
    assert f"<|im_start|>user\n{text}<|im_end|>" in b"".join(map(runtime.model.piece_with_special, tokens)).decode()
    assert runtime.model.detokenize(runtime.prompts.text(text).tokens) == text


def test_a_base_model_completes_and_says_so(base_model_path: Path, log: LogCapture) -> None:
    runtime = ModelRuntime(NativeModel(str(base_model_path), log), ContextSettings(512, 1, 2, 2), log)
    try:
        made = generate(runtime, messages=[user(PROMPT)], temperature=0.0, max_tokens=4)
        assert made.text.startswith(" Paris")
        assert "no chat template" in made.notes[0]
    finally:
        runtime.close()


def test_a_second_context_is_made_only_where_it_fits(
    smollm2_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ContextSettings(n_ctx=512, n_seq_max=1, n_threads=2, n_threads_batch=2)
    runtime = ModelRuntime(NativeModel(str(smollm2_path), log), settings, log, context_bytes=1 << 30)
    try:
        generate(runtime, PROMPT, max_tokens=2)
        monkeypatch.setattr("llama_magic.inference.runtime.available_memory", lambda: 1 << 20)
        # the lone context gives way to the conversations'
        generate(runtime, messages=[user("Hi")], conversation="a", max_tokens=2)
        with pytest.raises(OutOfMemoryError, match=r"takes 1,074 MB, but 1 MB are free.*-c 256"):
            generate(runtime, PROMPT, max_tokens=2)
    finally:
        runtime.close()


def test_an_empty_prompt(runtime: ModelRuntime) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        generate(runtime, "")
