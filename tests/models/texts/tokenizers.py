"""Small tokenizers whose tokens can be read off: one token a byte, with or without BOS, end of text and a chat template."""

from __future__ import annotations

from typing import Any

BOS, EOS = 256, 257


class Bytes:
    """One token a byte; BOS in front of a text where `begins`."""

    def __init__(self, begins: bool = False, eos_token_id: int | None = None, chat_template: str | None = None) -> None:
        self.begins, self.eos_token_id, self.chat_template = begins, eos_token_id, chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * (self.begins and add_special_tokens) + list(text.encode())

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool = True, add_generation_prompt: bool = False) -> Any:
        assert not tokenize
        text = "".join(f"<{message['role']}>{message['content']}</>" for message in conversation)
        return text + "<assistant>" * add_generation_prompt

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [{BOS: "<bos>", EOS: "<eos>"}.get(token, str(token)) for token in ids]
