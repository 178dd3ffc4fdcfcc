"""``%llama save`` and ``%llama restore``: conversations as files, and in the store with the state of their cache."""

from __future__ import annotations

from pathlib import Path

from llama_magic.api.files import read_conversation, write_conversation
from llama_magic.api.saved import delete_saved, saved_conversations
from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.commands import Context, turns_of
from llama_magic.notebook.parsers import Arguments
from llama_magic.units import format_bytes

__all__ = ["restore", "save"]

#: Files that hold a conversation's text, without a state.
_TEXT = (".json", ".md", ".markdown")


def _file(word: str) -> Path | None:
    """Return the file that a word names; None where it is a name: a file has a known suffix or a slash."""
    path = Path(word).expanduser()
    if path.suffix.lower() in (*_TEXT, ".chat") or "/" in word or "\\" in word:
        return path
    return None


def save(context: Context, arguments: Arguments) -> object:
    """``%llama save NAME|FILE [CONVERSATION]``, ``%llama save --delete NAME``."""
    session, word = context.session, arguments.word
    doomed = arguments.get("delete")
    if doomed is not None:
        if word is not None:
            raise InvalidRequestError(f"--delete takes one name; {word!r} is one word too many")
        gone = delete_saved(_file(doomed) or doomed)
        return f"Deleted '{gone.name}' ({turns_of(gone.turns)}, {format_bytes(gone.size)})."
    if word is None:
        raise InvalidRequestError(
            "save needs a name: %llama save talk keeps the conversation and what the model has read of it; "
            "talk.json (to restore) and talk.md (to read) hold its text"
        )
    file, force = _file(word), arguments.get("force", False)
    name = arguments.words[1] if len(arguments.words) > 1 else None
    if name is None and word in session.conversations:
        name = word
    conversation = session.conversation(name)
    if file is not None and file.suffix.lower() != ".chat":
        write_conversation(conversation, file, force=force)
        return f"Saved '{conversation.name}' ({turns_of(len(conversation))}) to {file}."
    saved = session.save(file or word, conversation.name, force=force, on_progress=context.on_progress)
    where = "" if file is None else f" to {file}"
    under = f" as '{saved.name}'" if saved.name != conversation.name and file is None else ""
    return (
        f"Saved '{conversation.name}'{under}{where}: {turns_of(saved.turns)}, {saved.tokens:,} tokens, "
        f"{format_bytes(saved.size)}. %llama restore {saved.name if file is None else file} goes on with it."
    )


def restore(context: Context, arguments: Arguments) -> object:
    """``%llama restore [NAME|FILE]``."""
    session, word = context.session, arguments.word
    if word is None:
        return saved_conversations()
    file = _file(word)
    text_only = arguments.get("text_only", False)
    if file is not None and file.suffix.lower() != ".chat":
        conversation = session.add(read_conversation(file))
        held = ""
    else:
        conversation = session.restore(
            file or word, text_only=text_only, force=arguments.get("force", False), on_progress=context.on_progress
        )
        held = " The model reads it again with the next turn." if text_only else " The model has read it already."
    if "out" in arguments.values:
        return conversation
    return f"Restored '{conversation.name}' ({turns_of(len(conversation))}); -cnv continues it.{held}"
