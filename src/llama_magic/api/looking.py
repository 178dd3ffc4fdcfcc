"""Look at the distribution of the next token, as the model gives it."""

from __future__ import annotations

from llama_magic.api.session import Session
from llama_magic.engine.protocol import NextTokenRequest
from llama_magic.errors import InvalidRequestError
from llama_magic.inference.conversation import Conversation
from llama_magic.inference.distribution import NextToken
from llama_magic.inference.results import Message

__all__ = ["next_token"]


def next_token(
    session: Session,
    text: str | None = None,
    *,
    chat: str | None = None,
    turn: int | None = None,
    tokens: int = 0,
    count: int = 200,
) -> NextToken:
    """Return how likely each token is to come next, before any sampler.

    Parameters
    ----------
    text
        Continued as it is where `chat` is None, else the next question of that conversation.
    chat
        The conversation; "" is the current one.
    turn, tokens
        Look at the place in the answer of this turn (from 0) that comes after so many of its tokens.
    count
        How many of the likeliest tokens come with their text.

    Raises
    ------
    InvalidRequestError, ContextFullError
    """
    spec = session.spec()
    client = session.client(spec)
    if chat is None:
        found: NextToken = client.request(NextTokenRequest(spec, text or "", count=count))
        return found
    name = chat or session.chat
    conversation = session.conversations.get(name) or Conversation(name, session.system)
    session.wait_for_chat(conversation)
    if turn is not None and not 0 <= turn < len(conversation.turns):
        raise InvalidRequestError(f"the conversation has no turn {turn + 1} any more")
    messages = conversation.messages(turn)
    answered: tuple[int, ...] = ()
    if turn is not None:
        said = conversation.turns[turn]
        messages, answered = (*messages, Message("user", said.user)), said.completion.tokens[:tokens]
    elif text:
        messages = (*messages, Message("user", text))
    if not messages or messages[-1].role != "user":
        raise InvalidRequestError("write a question first: the next token is that of its answer")
    looked: NextToken = client.request(NextTokenRequest(spec, None, messages, conversation.key, answered, count))
    return looked
