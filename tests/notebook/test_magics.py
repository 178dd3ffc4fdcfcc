"""The magics on a real IPython shell, with a fake engine behind them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from llama_magic.api import session as session_module
from llama_magic.engine.client import set_client
from llama_magic.engine.protocol import LoadRequest
from llama_magic.errors import ContextFullError, EngineCrashed, EngineProtocolError, GenerationInterrupted, GrammarError
from llama_magic.inference.results import Message
from llama_magic.models import resolve as resolve_module
from tests.fakes import FakeClient


class Shell(InteractiveShell):
    """A shell that plays a notebook's part in telling which cell runs."""

    cell: str | None = None
    runs = 0

    def get_parent(self) -> dict[str, Any]:
        metadata = {"cellId": self.cell} if self.cell else {}
        return {"header": {"msg_id": str(self.runs)}, "metadata": metadata}

    def run(self, code: str, cell: str | None = None) -> Any:
        self.cell = cell
        type(self).runs += 1
        run_cell: Any = self.run_cell
        return run_cell(code)

    def ok(self, code: str, cell: str | None = None) -> None:
        self.run(code, cell).raise_error()

    def error(self, code: str) -> str:
        error = self.run(code).error_in_exec
        assert isinstance(error, UsageError), error
        assert error.__traceback__ is not None
        return str(error)


@pytest.fixture(scope="module")
def one_shell() -> Iterator[Any]:
    shell = Shell.instance()
    yield shell
    Shell.clear_instance()


@pytest.fixture
def client() -> Iterator[FakeClient]:
    client = FakeClient()
    set_client(client)
    yield client
    set_client(None)


@pytest.fixture
def shell(one_shell: Any, client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def resolve(ref: str, _fetch: Any = None) -> Any:
        if ref == "missing.gguf":
            return real(ref)
        return f"/models/{ref}.gguf"

    real = resolve_module.resolve
    monkeypatch.setattr(resolve_module, "resolve", resolve)
    monkeypatch.chdir(tmp_path)
    session_module.set_session(None)
    one_shell.reset(new_session=False)
    one_shell.run_line_magic("load_ext", "llama_magic.notebook")
    yield one_shell
    one_shell.run_line_magic("unload_ext", "llama_magic.notebook")


def asked(client: FakeClient) -> str:
    request = client.generated[-1]
    return request.messages[-1].content if request.prompt is None else request.prompt


# what arrives


@pytest.mark.parametrize(
    "body",
    [
        '{"a": {1}} {{x}} {y!r} {z.w} f"{q}" {}',
        "$HOME ${x} !ls !!ls %time %%time ?x x?",
        "back\\slash \\n \\\\ C:\\new",
        "日本語 😀👩‍👩‍👧 مرحبا \u202e עברית é é",
        "  leading spaces\n\n\n\ttabs\t\n   trailing   ",
        "# comment\n'quote' \"double\" `tick`",
        "-n 5 --temp 3",
        "%llama load x",
        "\x85\x0b\x0c\u2028 odd line ends",
    ],
)
def test_the_body_arrives_byte_for_byte(shell: Any, client: FakeClient, body: str) -> None:
    shell.ok(f"%%llama\n{body}")
    assert asked(client) == body


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(body=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_body_arrives(shell: Any, client: FakeClient, body: str) -> None:
    shell.run_cell_magic("llama", "--raw", body + "\n")
    assert asked(client) == body


def test_names_are_filled_in_unless_raw(shell: Any, client: FakeClient) -> None:
    shell.user_ns["city"] = "Rome"
    shell.ok("%%llama -sys 'in {city}'\n{city} {town} {{city}}")
    assert client.generated[-1].messages == (Message("system", "in Rome"), Message("user", "Rome {town} {{city}}"))
    shell.ok("%%llama --raw\n{city}")
    assert asked(client) == "{city}"


def test_a_grammar_on_the_line_arrives(shell: Any, client: FakeClient) -> None:
    shell.user_ns["x"] = 1
    shell.ok("%%llama --grammar 'root ::= [a-z]{1,3} $x {x}'\nhi")
    assert client.generated[-1].params.grammar == "root ::= [a-z]{1,3} $x {x}"


def test_prompt_flags(shell: Any, client: FakeClient) -> None:
    Path("notes.txt").write_text("the {x} notes\n")
    shell.user_ns["x"] = 1
    shell.ok("%llama -p 'a\\nb'")
    assert asked(client) == "a\nb"
    shell.ok("%%llama -f notes.txt\nSummarise.")
    assert asked(client) == "the {x} notes\n\nSummarise."
    shell.ok("%llama -f notes.txt")
    assert asked(client) == "the {x} notes"


def test_no_cnv_continues_the_text(shell: Any, client: FakeClient) -> None:
    shell.ok("%%llama -no-cnv\nOnce upon a time")
    assert client.generated[-1].prompt == "Once upon a time"
    assert client.generated[-1].messages == ()


def test_flags_reach_the_request(shell: Any, client: FakeClient) -> None:
    shell.ok("%%llama -n 5 --temp 0 -s 1 -c 512 -t 1 other --stop END\nhi")
    request = client.generated[-1]
    assert (request.params.max_tokens, request.params.temperature, request.params.seed) == (5, 0.0, 1)
    assert (request.spec.ref, request.spec.options.n_ctx, request.spec.options.n_threads) == ("other", 512, 1)
    assert request.params.stop == ("END",)
    assert request.conversation is None


# results


def test_out_holds_the_completion(shell: Any, client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.replies.append("Hello there")
    shell.ok("%%llama --seed 1 --out answer\nhi")
    answer = shell.user_ns["answer"]
    assert (answer.text, answer.finish_reason, len(answer.tokens)) == ("Hello there", "stop", 4)
    assert answer.receipt.seed == 1
    assert answer.receipt.llama_cli.startswith("llama-cli -m /models/smollm2.gguf -c 2048 -t 2 -n 512 -s 1 ")
    assert answer.timings.generated_tokens == 4
    assert "Hello there" in capsys.readouterr().out


def test_a_seed_is_drawn_and_recorded(shell: Any) -> None:
    seeds = set()
    for _ in range(5):
        shell.ok("%%llama --out a\nhi")
        seeds.add(shell.user_ns["a"].receipt.seed)
    assert len(seeds) == 5


def test_output_file(shell: Any, client: FakeClient) -> None:
    client.replies += ["one\r\nüwo", "again"]
    shell.ok("%%llama -o out.txt\nhi")
    assert Path("out.txt").read_bytes() == "one\r\nüwo".encode()
    shell.ok("%%llama -o out.txt --samples 2\nhi")
    assert Path("out.txt").read_text() == "again\n\nagain"
    assert [path.name for path in Path().iterdir()] == ["out.txt"]
    count = len(client.requests)
    assert "there is no folder" in shell.error("%%llama -o no/where.txt\nhi")
    assert "is a folder" in shell.error("%%llama -o .\nhi")
    assert len(client.requests) == count


def test_schema_from_a_variable_a_file_and_text(shell: Any, client: FakeClient) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    shell.user_ns["Shape"] = schema
    Path("shape.json").write_text(json.dumps(schema))
    for how in ("--schema Shape", "-jf shape.json", "--schema shape.json", f"-j {json.dumps(schema)}"):
        client.replies.append('{"n": 3}')
        shell.ok(f"%%llama {how} --out a\nhi")
        assert shell.user_ns["a"].parsed == {"n": 3}
        assert json.loads(client.generated[-1].params.schema or "") == schema


def test_an_answer_that_does_not_validate_says_so(shell: Any, client: FakeClient) -> None:
    shell.user_ns["S"] = {"type": "object", "required": ["n"]}
    client.replies.append("{}")
    shell.ok("%%llama --schema S --out a\nhi")
    assert shell.user_ns["a"].parsed is None
    assert "does not validate" in shell.user_ns["a"].notes[0]


def test_pydantic_model_by_name(shell: Any, client: FakeClient) -> None:
    pytest.importorskip("pydantic")
    shell.ok("from pydantic import BaseModel\nclass Person(BaseModel):\n    name: str")
    client.replies.append('{"name": "Ada"}')
    shell.ok("%%llama --schema Person --out a\nhi")
    assert shell.user_ns["a"].parsed == shell.user_ns["Person"](name="Ada")
    assert shell.error("%%llama --schema Persn\nhi") == (
        "--schema: there is no variable or file 'Persn'. Did you mean Person?"
    )


# conversations


def users(name: str = "chat") -> list[str]:
    return [turn.user for turn in session_module.current_session().conversations[name].turns]


def test_a_cell_stands_alone_by_default(shell: Any, client: FakeClient) -> None:
    shell.ok("%%llama\none")
    shell.ok("%%llama\ntwo")
    assert client.generated[-1].messages == (Message("user", "two"),)
    assert session_module.current_session().conversations == {}


def test_cnv_goes_on(shell: Any, client: FakeClient) -> None:
    client.replies += ["1", "2"]
    shell.ok("%%llama -cnv -sys brief\none", "A")
    shell.ok("%%llama -cnv\ntwo", "B")
    assert [m.content for m in client.generated[-1].messages] == ["brief", "one", "1", "two"]
    first, second = client.generated
    assert first.conversation == second.conversation is not None


def test_running_a_cell_again_replaces_its_turn(shell: Any, client: FakeClient, capsys: Any) -> None:
    for text, cell in (("one", "A"), ("two", "B"), ("three", "C")):
        shell.ok(f"%%llama -cnv\n{text}", cell)
    shell.ok("%%llama -cnv\nthree!", "C")
    assert users() == ["one", "two", "three!"]
    capsys.readouterr()
    shell.ok("%%llama -cnv\none!", "A")
    assert users() == ["one!"]
    assert client.generated[-1].messages == (Message("user", "one!"),)
    assert "turn replaced; 2 later turns kept as branch 'branch-1'" in capsys.readouterr().out


def test_a_loop_in_one_cell_makes_several_turns(shell: Any) -> None:
    code = "for q in 'abc':\n    get_ipython().run_cell_magic('llama', '-cnv', q)"
    shell.ok(code, "A")
    shell.ok(code, "A")
    assert users() == ["a", "b", "c"]


def test_without_cell_ids_turns_append(shell: Any) -> None:
    shell.ok("%%llama -cnv\none")
    shell.ok("%%llama -cnv\none")
    assert users() == ["one", "one"]


def test_a_failed_turn_changes_nothing(shell: Any, client: FakeClient) -> None:
    shell.ok("%%llama -cnv\none", "A")
    shell.ok("%%llama -cnv\ntwo", "B")
    client.replies.append(ContextFullError(5000, 4096, 8192))
    assert "-c 8192" in shell.error("%%llama -cnv --new -sys other\nlong")
    assert users() == ["one", "two"]
    assert session_module.current_session().conversations["chat"].system is None


def test_named_conversations(shell: Any) -> None:
    shell.ok("%%llama --chat poem\na")
    shell.ok("%%llama -cnv\nb")
    assert (users("poem"), users("chat")) == (["a"], ["b"])
    shell.ok("%llama chat poem")
    shell.ok("%%llama -cnv\nc")
    assert users("poem") == ["a", "c"]


def test_new_undo_retry_history(shell: Any, client: FakeClient, capsys: Any) -> None:
    client.replies += ["A1", "B1", "B2"]
    shell.ok("%%llama -cnv --seed 1 --temp 0.5\na", "A")
    shell.ok("%%llama -cnv --seed 1 --temp 0.5\nb", "B")
    shell.ok("%llama retry --out again", "R")
    assert shell.user_ns["again"].text == "B2"
    request = client.generated[-1]
    assert [m.content for m in request.messages] == ["a", "A1", "b"]
    assert (request.params.temperature, request.params.seed == 1) == (0.5, False)
    conversation = session_module.current_session().conversations["chat"]
    assert [turn.text for turn in conversation.branches["branch-1"]] == ["A1", "B1"]
    capsys.readouterr()
    shell.ok("%llama history")
    out = capsys.readouterr().out
    assert out.index("1. a") < out.index("A1") < out.index("2. b") < out.index("B2")
    shell.ok("%llama history chat/branch-1")
    assert "B1" in capsys.readouterr().out
    shell.ok("%llama undo")
    assert "Removed 1 turn from 'chat', 1 left:\n  b" in capsys.readouterr().out
    shell.ok("%llama new")
    assert users() == []
    shell.ok("%llama chat chat/branch-1")
    assert users() == ["a", "b"]


def test_new_on_a_cell_starts_over_each_time(shell: Any, client: FakeClient) -> None:
    shell.ok("%%llama -cnv\nold", "Z")
    for _ in range(2):
        shell.ok("%%llama -cnv --new\na", "A")
        assert client.generated[-1].messages == (Message("user", "a"),)
        assert users() == ["a"]
    assert list(session_module.current_session().conversations["chat"].branches) == ["branch-1"]


def test_save_and_restore(shell: Any, client: FakeClient) -> None:
    client.replies.append("grüße")
    shell.ok("%%llama -cnv\nhi", "A")
    shell.ok("%llama save chat.json")
    shell.ok("%llama save chat.md")
    assert "grüße" in Path("chat.md").read_text("utf-8")
    shell.ok("%llama save chat.md")
    Path("mine.md").write_text("my own notes")
    assert "--force overwrites it" in shell.error("%llama save mine.md")
    session_module.set_session(None)
    shell.run_line_magic("reload_ext", "llama_magic.notebook")
    shell.ok("%llama restore chat.json")
    assert users() == ["hi"]
    shell.ok("%%llama -cnv\nhi again", "A")
    assert users() == ["hi again"]
    assert "no such file" in shell.error("%llama restore nowhere.json")
    assert "no saved conversation" in shell.error("%llama restore mine.md")
    assert ".json (to restore) or .md" in shell.error("%llama save ./chat.txt")
    assert "no name for a saved conversation" in shell.error("%llama save chat.txt")


# models and defaults


def test_load_makes_the_current_model(shell: Any, client: FakeClient, capsys: Any) -> None:
    shell.ok("%llama load big -c 1024")
    assert "context 1,024" in capsys.readouterr().out
    shell.ok("%%llama\nhi")
    assert (client.generated[-1].spec.ref, client.generated[-1].spec.options.n_ctx) == ("big", 1024)
    shell.ok("%%llama other\nhi")
    assert (client.generated[-1].spec.ref, client.generated[-1].spec.options.n_ctx) == ("other", None)
    shell.ok("%%llama -t 1\nhi")
    assert client.generated[-1].spec.options.n_threads == 1
    shell.ok("%llama unload")
    assert "Unloaded big.gguf" in capsys.readouterr().out
    shell.ok("%%llama\nhi")
    assert client.generated[-1].spec.ref == "smollm2"
    shell.ok("%llama load --force")
    assert client.requests[-1] == LoadRequest(client.generated[-1].spec, force=True)


def test_context_of_zero_is_the_model_s_own(
    shell: Any, client: FakeClient, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve_module, "resolve", lambda _ref, _fetch: str(smollm2_path))
    shell.ok("%%llama -c 0\nhi")
    assert client.generated[-1].spec.options.n_ctx == 8192


def test_half_a_character_is_refused(shell: Any) -> None:
    shell.user_ns["half"] = "\ud83d"
    assert "half of a character" in shell.error("%%llama\n{half}")


def test_unload_starts_no_worker(shell: Any, client: FakeClient, capsys: Any) -> None:
    shell.ok("%llama unload")
    assert "No model was loaded." in capsys.readouterr().out
    assert client.requests == []


def test_config_magic_sets_the_defaults(shell: Any, client: FakeClient, capsys: Any) -> None:
    shell.ok("%config LlamaMagic.temperature = 0.25")
    shell.ok("%config LlamaMagic.n_ctx = 256")
    shell.ok("%llama config -n 9 mirostat=2 --format text")
    assert "* max_tokens     = 9" in capsys.readouterr().out
    shell.ok("%%llama\nhi")
    request = client.generated[-1]
    assert (request.params.temperature, request.params.max_tokens, request.params.mirostat) == (0.25, 9, 2)
    assert request.spec.options.n_ctx == 256
    shell.ok("%%llama --temp 1\nhi")
    assert client.generated[-1].params.temperature == 1.0
    assert "between 0 and 1" in shell.error("%llama config top_p=3")
    assert "float" in shell.error("%llama config temperature=warm")
    assert "Did you mean temperature" in shell.error("%llama config temprature=1")
    shell.ok("%llama config reset")
    shell.ok("%%llama\nhi")
    assert client.generated[-1].params.changed().keys() == {"seed"}


# errors


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("%%llama\n   \n", "the prompt is empty"),
        ("%%llama --tmp 3\nhi", "unknown flag --tmp. Did you mean --temp?"),
        ("%%llama -n -5\nhi", "-n takes 1 or more tokens"),
        ("%%llama --temp abc\nhi", "--temp takes a number"),
        ("%%llama missing.gguf\nhi", "missing.gguf"),
        ("%%llama -cnv --samples 2\nhi", "--samples works only in a cell that stands alone"),
        ("%%llama -cnv -no-cnv\nhi", "give one of them"),
        ("%%llama --chat a/b\nhi", "must not be empty or hold a slash"),
        ("%%llama --schema {} --grammar x\nhi", "give a grammar or a schema, not both"),
        ("%%llama load\nhi", "load works on a line of its own"),
        ("%llama loda", "unknown subcommand 'loda'. Did you mean load?"),
        ("%llama smollm2", "to load smollm2: %llama load smollm2"),
        ("%llama 'x", "a quote (') is not closed"),
        ("%llama -n 5", "the prompt is empty"),
        ("%llama undo", "there is no conversation yet"),
        ("%llama retry", "there is no conversation yet"),
        ("%llama history", "there is no conversation yet"),
        ("%llama undo x", "undo takes the number of turns"),
        ("%llama save", "save needs a name"),
        ("%llama help nothing-like-it", "no help on"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line(shell: Any, client: FakeClient, capsys: Any, code: str, says: str) -> None:
    message = shell.error(code)
    assert says in message
    assert "\n" not in message
    assert client.generated == []
    captured = capsys.readouterr()
    assert captured.err == f"UsageError: {message}\n"
    assert "Traceback" not in captured.out


def test_errors_of_the_engine_are_readable(shell: Any, client: FakeClient) -> None:
    client.replies += [
        GrammarError("line 1: expected ::="),
        EngineCrashed("The worker was killed.", -9, ("last",)),
        "ok",
    ]
    assert shell.error("%%llama --grammar x\nhi") == "line 1: expected ::="
    assert shell.error("%%llama\nhi").startswith("The worker was killed. The next call starts a fresh worker")
    shell.ok("%%llama\nhi")


def test_bugs_keep_their_traceback(shell: Any, client: FakeClient) -> None:
    client.replies += [ZeroDivisionError("bug"), EngineProtocolError("bug")]
    assert isinstance(shell.run("%%llama\nhi").error_in_exec, ZeroDivisionError)
    assert isinstance(shell.run("%%llama\nhi").error_in_exec, EngineProtocolError)


def test_interrupt_keeps_the_partial_text(shell: Any, client: FakeClient, capsys: Any) -> None:
    client.replies += [["Once ", "upon", KeyboardInterrupt()], "fine"]
    error = shell.run("%%llama -cnv --out a -o a.txt\nhi", "A").error_in_exec
    assert isinstance(error, GenerationInterrupted)
    assert error.completion is shell.user_ns["a"]
    assert (shell.user_ns["a"].text, shell.user_ns["a"].finish_reason) == ("Once upon", "interrupted")
    assert not Path("a.txt").exists()
    assert users() == ["hi"]
    out = capsys.readouterr().out
    assert "Once upon" in out
    assert "interrupted" in out
    assert "Traceback" not in out
    shell.ok("%%llama -cnv\nhi", "A")
    assert users() == ["hi"]


def test_interrupt_before_the_first_token_records_nothing(shell: Any, client: FakeClient) -> None:
    client.replies += ["ok", KeyboardInterrupt()]
    shell.ok("%%llama -cnv\none", "A")
    error = shell.run("%%llama -cnv\none", "A").error_in_exec
    assert isinstance(error, GenerationInterrupted)
    assert users() == ["one"]


def test_interrupt_while_loading(shell: Any, client: FakeClient, capsys: Any) -> None:
    client.replies.append(KeyboardInterrupt())
    assert isinstance(shell.run("%llama load smollm2").error_in_exec, KeyboardInterrupt)
    assert "Traceback" not in capsys.readouterr().out


# help and the extension


def test_the_help_flag_of_other_tools_is_understood(shell: Any, capsys: Any) -> None:
    shell.run_cell("%llama help compare")
    expected = capsys.readouterr().out
    assert "--chunks" in expected
    for code in (
        "%llama compare --help",
        "%llama compare smollm2 --suite -h",
        "%llama compare --help Q4_0",
        "%%llama compare smollm2 Q4_0 --help\nHi",
    ):
        assert shell.run_cell(code).success
        assert capsys.readouterr().out == expected
    assert shell.run_cell("%%llama --help\nHi").success
    assert "--temp" in capsys.readouterr().out


def test_help(shell: Any, capsys: Any) -> None:
    for code in ("%llama", "%llama help", "%llama --help", "%llama help cell", "%llama help --temp", "%llama version"):
        shell.ok(code)
        assert capsys.readouterr().out.strip()
    documented = shell.find_cell_magic("llama").__doc__
    assert "--temp, --temperature X" in documented


def test_loading_twice_and_unloading(shell: Any) -> None:
    shell.run_line_magic("reload_ext", "llama_magic.notebook")
    assert sum(type(c).__name__ == "LlamaMagic" for c in shell.configurables) == 1
    matchers = [m for m in shell.Completer.custom_matchers if getattr(m, "matcher_identifier", "") == "llama_magic"]
    assert len(matchers) == 1
    shell.run_line_magic("unload_ext", "llama_magic.notebook")
    assert shell.find_cell_magic("llama") is None
    assert not any(type(c).__name__ == "LlamaMagic" for c in shell.configurables)
    shell.run_line_magic("load_ext", "llama_magic.notebook")


def test_load_ext_is_light() -> None:
    code = (
        "import sys, time\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "start = time.process_time()\n"
        "shell.run_line_magic('load_ext', 'llama_magic')\n"
        "print(time.process_time() - start)\n"
        "print(sorted({'numpy', 'llama_cpp', 'ipywidgets', 'pydantic', 'jinja2'} & set(sys.modules)))\n"
        "assert shell.find_cell_magic('llama')\n"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took, imported = done.stdout.splitlines()
        assert imported == "[]"
        seconds.append(float(took))
    assert min(seconds) < 0.3


def test_what_is_imported_while_nobody_waits_is_light_and_stops_for_cells() -> None:
    code = (
        "import sys\n"
        "from llama_magic import notebook\n"
        "notebook._cell_begins(None)\n"
        "notebook._import_early()\n"
        "print(sum(name in sys.modules for name in notebook._EARLY))\n"
        "notebook._cell_ended(None)\n"
        "notebook._import_early()\n"
        "print([name for name in notebook._EARLY if name not in sys.modules])\n"
        "print(sorted({'numpy', 'llama_cpp', 'ipywidgets', 'pydantic', 'jinja2', 'httpx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0", "[]", "[]"]
