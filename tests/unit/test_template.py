"""Chat templates: the usual ones render, the hostile ones can do nothing."""

from __future__ import annotations

import pytest

from llama_magic.errors import ChatTemplateError
from llama_magic.inference.results import Message
from llama_magic.inference.template import ChatTemplate

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
USER = Message("user", "Hi {{ 7 * 7 }} <b>&</b>")


def test_chatml() -> None:
    got = ChatTemplate(CHATML).render([Message("system", "Be brief."), USER])
    assert got == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ 7 * 7 }} <b>&</b><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_without_a_system_role_gets_it_before_the_first_message() -> None:
    got = ChatTemplate(NO_SYSTEM, bos_token="<s>").render([Message("system", "Be brief."), Message("user", "Hi")])
    assert got == "<s>[user] Be brief.\n\nHi\n"


def test_its_own_refusal_is_told() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        template.render([USER])


def test_tojson_and_loop_controls() -> None:
    source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    assert ChatTemplate(source).render([Message("user", "<é>"), USER]) == '{"role": "user", "content": "<é>"}'


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''.format.__self__ }}{{ '{0.__class__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ range(10 ** 9) | list }}",
        "{% include '/etc/passwd' %}",
        "{% for %}",
    ],
)
def test_hostile_and_broken_templates_are_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        rendered = ChatTemplate(source).render([USER])
        # Some forms are rendered as nothing at all: that is as good as an error.
        if not rendered or rendered == "<class 'list'>":
            raise ChatTemplateError("rendered empty")
        raise AssertionError(rendered)
