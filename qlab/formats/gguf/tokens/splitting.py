"""How a byte-level tokenizer splits text before it merges, by llama.cpp's names (llama-vocab.cpp): one table to write by and to read by.

A GGUF file names such a way and cannot describe one.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, pre_tokenizers

BYTES = "bytes"  # the step at which text becomes bytes
DIGIT, NUMBER = r"\p{N}", r"\p{N}+"
PUNCTUATION = r"[\p{P}$+<=>^`|~]+"  # what the tokenizers library calls so
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDS = r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END|"
_TEKKEN = _CASES.replace("END", "") + _ENDS
_GPT4O = _CASES.replace("END", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + _ENDS.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_SEED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
WAYS = {
    "llama-bpe": (_LLAMA3, BYTES),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), BYTES),
    "tekken": (_TEKKEN, BYTES),
    "gpt-4o": (_GPT4O, BYTES),
    "deepseek-v3": (*_DEEPSEEK, BYTES),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT, BYTES),
    "seed-coder": (_SEED, BYTES),
    "gpt-2": (GPT2, BYTES),
    "smollm": (DIGIT, GPT2, BYTES),
    "falcon": (PUNCTUATION, GPT2, BYTES, NUMBER, "[0-9][0-9][0-9]"),
}
SAME = {  # other names that llama.cpp splits by the same rule
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"),
    "gpt-4o": ("llama4", "kanana2", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense",),
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat", "a.x-4.0", "mellum", "modern-bert", "granite-docling"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
}
BY_NAME = WAYS | {name: WAYS[usual] for usual, names in SAME.items() for name in names}
MERGING = ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")  # of those of Llama 3's rule, the ones that merge a word that is a token, too
BEGINS = ("llama-bpe", *(name for name in SAME["llama-bpe"] if name not in MERGING), "tekken")
"""Names under which llama.cpp takes a word that is a token whole, whatever its merges, and begins texts with the first token, where the
header says nothing of that."""


def steps(part: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer of tokenizer.json; a sequence holds them under the key `several`."""
    if part is None:
        return []
    return [step for inner in part[several] for step in steps(inner, several)] if part["type"] == "Sequence" else [part]


def way(pre_tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The patterns that a pre-tokenizer of tokenizer.json splits by, one after the other, and BYTES; a step of another kind is "?"."""
    return tuple(pattern for step in steps(pre_tokenizer, "pretokenizers") for pattern in patterns(step))


def patterns(step: dict[str, Any]) -> tuple[str, ...]:
    """What one step comes to."""
    match step:
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"} if not step.get("invert"):
            return (written_out(pattern),)
        case {"type": "Digits"}:
            return (DIGIT if step.get("individual_digits") else NUMBER,)
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return (PUNCTUATION,)
        case {"type": "ByteLevel"}:
            return (GPT2, BYTES) if step.get("use_regex", True) else (BYTES,)
    return ("?",)


def written_out(pattern: str) -> str:
    """A pattern whose line breaks are written as escapes, which mean the same."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


def name_of(pre_tokenizer: dict[str, Any], ignore_merges: bool) -> str | None:
    """llama.cpp's name for how text is split, None where there is none here.

    Under "llama-bpe" llama.cpp takes a word that is a token whole, whatever its merges (Llama 3's `ignore_merges`); "dbrx" splits by the
    same pattern and merges.
    """
    found = way(pre_tokenizer)
    name = next((name for name, known in WAYS.items() if known == found), None)
    return "dbrx" if name == "llama-bpe" and not ignore_merges else name


def splitter(name: str) -> Any:
    """How text is split under one of llama.cpp's names in BY_NAME: a pre-tokenizer of the tokenizers library."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            if pattern == BYTES
            else pre_tokenizers.Split(Regex(pattern), behavior="isolated")
            for pattern in BY_NAME[name]
        ]
    )
