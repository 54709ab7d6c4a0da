"""Chat templates: transformers' own bytes, in a process that lives from chat to chat, and bounds for what hostile ones take."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
from transformers import PreTrainedTokenizerBase

from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.models.texts.conversations import Document, rendered
from qlab.support.errors import UserError
from qlab.support.processes.process import peak_bytes
from tests.models.texts.tokenizers import TURNS

TALK = [
    {"role": "system", "content": "Say <b>&amp;</b> 漢字 😀.\n"},
    {"role": "user", "content": ' What is "NumPy"? {{ 7 * 7 }} '},
    {"role": "assistant", "content": "A library."},
]
TEMPLATES = {
    "turns": TURNS,
    "ChatML": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "headers": "{{- bos_token }}\n{%- for m in messages %}\n    {{- '<|start|>' + m.role + '<|end|>\\n\\n' + m.content | trim }}\n"
    "    {{- eos_token }}\n{%- endfor %}\n{%- if tools is not none or documents %}{{ raise_exception('no') }}{% endif %}",
    "blocks": "  {% for m in messages %}\n  {% if loop.first %}\n {% continue %}\n{% endif %}\n"
    "{% generation %}{{ m | tojson(indent=2) }}{% endgeneration %}\n{% endfor %}",
    "variables": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }} "
    "{{ strftime_now('%Y') }} {{ messages[-1].reasoning_content is defined }}",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny: OpenedModel) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny)


def through(tokenizer: PreTrainedTokenizerBase, template: Any, talk: list[dict[str, str]] = TALK) -> str:
    tokenizer.chat_template = template
    return rendered(Document("chat.jsonl, line 3", "", tuple((m["role"], m["content"]) for m in talk)), tokenizer)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("talk", [TALK, TALK[:2]])
def test_a_chat_is_what_transformers_makes_of_it(template: str, talk: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> None:
    found = through(tokenizer, template, talk)
    assert found == tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=talk[-1]["role"] == "user")
    assert found.strip()
    assert through(tokenizer, {"default": template, "tool_use": "x"}, talk) == found


def test_many_chats_take_one_process_and_little_time(tokenizer: PreTrainedTokenizerBase) -> None:
    through(tokenizer, TURNS)
    before, started = {child.pid for child in psutil.Process().children()}, time.process_time()
    assert len({through(tokenizer, TURNS, [{"role": "user", "content": str(number)}]) for number in range(2000)}) == 2000
    assert time.process_time() - started < 5
    assert {child.pid for child in psutil.Process().children()} == before


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'a' * 3000000000 }}", "asked for more than 2 GiB of memory"),
        ("{{ messages[0].content * 300000000 }}", "asked for more than 2 GiB of memory"),
        ("{{ raise_exception('a' * 900000000) }}", "chat"),
        ("{{ 'a' * 40000000 }}", "40,000,000 characters"),
        ("{{ 9 ** 100000000 }}", "was not done in 5 seconds of computing with this conversation"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "does not take this conversation"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "chat template of tiny"),
        (5, "is no text, but of type int"),
        ({"other": "x"}, "multiple chat templates"),
    ],
)
def test_a_template_that_does_not_render_is_one_message_and_the_next_one_renders(
    template: Any, said: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    before = peak_bytes()
    with pytest.raises(UserError, match=r"chat\.jsonl, line 3: the chat template of tiny ") as refused:
        through(tokenizer, template)
    assert said in str(refused.value)
    assert "expected the conversation as text" in str(refused.value)
    assert len(str(refused.value)) < 600
    assert peak_bytes() - before < 100e6
    assert through(tokenizer, TURNS, TALK[1:2]) == f"<user>{TALK[1]['content']}</><assistant>"
