"""Small tokenizers whose tokens can be read off: one token a byte, with or without BOS, end of text and a chat template."""

from __future__ import annotations

BOS, EOS = 256, 257
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # a template
)


class Bytes:
    """One token a byte; BOS in front of a text where `begins`."""

    def __init__(self, begins: bool = False, eos_token_id: int | None = None, chat_template: str | None = None) -> None:
        self.begins, self.eos_token_id, self.chat_template = begins, eos_token_id, chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * (self.begins and add_special_tokens) + list(text.encode())

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {}

    def get_chat_template(self) -> str:
        assert self.chat_template
        return self.chat_template

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [{BOS: "<bos>", EOS: "<eos>"}.get(token, str(token)) for token in ids]
