"""Damaged tokenizers, chat templates and texts for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qlab.models.locating import TEMPLATES as OTHER_TEMPLATES
from tests.fuzz.configs import DAMAGED, foreign, shown
from tests.fuzz.damage import (
    EITHER,
    GONE,
    REFUSED,
    WORKS,
    Case,
    Change,
    a_folder,
    a_loop,
    a_pipe,
    both,
    content,
    cut,
    endless,
    gone,
    sparse,
    values,
    within,
)


def framed_by(many: int) -> dict[str, Any]:
    """A post-processor that puts many times many tokens before a text."""
    frame = {"id": "<s>", "ids": [0] * many, "tokens": ["<s>"] * many}
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * many + [{"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {"<s>": frame}}


FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
RUN, GGUF = ("evaluate", "quantize"), ("evaluate", "gguf")
PARTS: dict[str, list[Any]] = {
    "version": ["99.0", 5, None, GONE],
    "added_tokens": [
        None,
        5,
        {},
        [5],
        [{}],
        [{"id": -1, "content": "x", "special": True}],
        [{"id": 2**63, "content": "x"}],
        [{"id": 10**6, "content": "<|far|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}],
        GONE,
    ],
    "normalizer": [
        5,
        [],
        {},
        {"type": "NoSuch"},
        {"type": "Sequence", "normalizers": 5},
        {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
        {"type": "Prepend", "prepend": "x" * 10},
        {"type": "Replace", "pattern": {"String": "e"}, "content": "x" * 10**6},
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 40},
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000},
        {"type": "Replace", "pattern": {"Regex": r"(\w+\s?)+$"}, "content": "x"},
        GONE,
    ],
    "pre_tokenizer": [
        None,
        5,
        [],
        {},
        {"type": "NoSuch"},
        {"type": "ByteLevel"},
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": r"(\w+\s?)*:$"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": r"(?=(.*e){20,}x)"}, "behavior": "Isolated", "invert": False},
        {"type": "Sequence", "pretokenizers": 5},
        {"type": "Sequence", "pretokenizers": []},
        GONE,
    ],
    "post_processor": [
        5,
        {},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "no", "type_id": 0}}], "pair": [], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        framed_by(30_000),
        GONE,
    ],
    "decoder": [None, 5, {"type": "NoSuch"}, GONE],
    "truncation": [5, {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}, {"max_length": -1}],
    "padding": [
        5,
        {"strategy": {"Fixed": 10**15}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
        {"strategy": {"Fixed": 4096}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
    ],
    "model": [
        None,
        5,
        [],
        {},
        {"type": "NoSuch"},
        {"type": "BPE"},
        {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "no"},
        {"type": "WordPiece", "vocab": {}, "unk_token": "no", "continuing_subword_prefix": "", "max_input_chars_per_word": 0},
        {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]},
        {"type": "Unigram", "unk_id": None, "vocab": []},
        GONE,
    ],
}
MODEL: dict[str, list[Any]] = {
    "vocab": [None, 5, [], {}, {"a": "x"}, {"a": -1}, {"a": 2**40}, {"a": 10**9}, {"a": 0, "b": 0}, {"": 0}],
    "merges": [None, 5, [5], ["a"], ["no such"], [["a", "b", "c"]], [["no", "such"]], [[]], {}, GONE],
    "unk_token": [5, "no"],
    "dropout": ["x", -1, 2, 0.5, 1e300],
    "byte_fallback": ["x", True],
    "ignore_merges": ["x", True],
    "continuing_subword_prefix": [5, "##"],
    "end_of_word_suffix": [5, "</w>"],
    "fuse_unk": ["x"],
}
OPTIONS: dict[str, list[Any]] = {
    "bos_token": [
        None,
        5,
        [],
        {},
        "",
        "<|no such token|>",
        "a" * 10_000,
        {"content": 5},
        {"__type": "AddedToken", "content": "x"},
        {"__type": "os"},
    ],
    "eos_token": [None, 5, [], {}, "<|no such token|>", {"content": "x", "lstrip": "x"}],
    "pad_token": [5, [], {}, "<|no such token|>"],
    "unk_token": [5, [], "<|no such token|>"],
    "additional_special_tokens": [5, [5], "x", {}, ["<|a|>"] * 3],
    "extra_special_tokens": [5, [5], ["x"], {}, {"a": 5}, {"__class__": "x"}],
    "added_tokens_decoder": [5, [], {}, {"x": {}}, {"-1": {"content": "x"}}, {"5": 5}, {"99999999999": {"content": "x"}}],
    "model_max_length": [None, -1, 0, "x", [], 10**400, 1e300, 10**30],
    "tokenizer_class": [None, 5, [], "NoSuch", "T5Tokenizer", "os.system", GONE],
    "clean_up_tokenization_spaces": ["x", [], None],
    "padding_side": ["x", 5, None],
    "truncation_side": ["x", 5],
    "chat_template": [
        None,
        5,
        [],
        [5],
        {},
        "",
        "{{",
        "{% for %}",
        "{{ 1/0 }}",
        [{"name": "a", "template": "x"}],
        [{"name": "a"}],
        {"default": "x"},
    ],
    "auto_map": [None, 5, [], {"AutoTokenizer": "x.T"}, {"AutoTokenizer": ["x.T", None]}],
    "add_bos_token": ["x", True, 5],
    "add_eos_token": ["x", True],
    "add_prefix_space": [True, "x"],
    "vocab_file": [5, "/etc/passwd"],
    "tokenizer_file": [5, "/etc/passwd", "../x"],
    "name_or_path": [5, "/etc"],
    "from_slow": [True, "x"],
    "backend": [5, "x"],
    "use_fast": [False, "x"],
    "added_tokens": [5],
    "self": [5],
    "__class__": [5],
    "tokenizer_object": [5],
    "processor_class": [5, "NoSuch"],
    "transformers_version": [5],
    "local_files_only": [False],
    "fix_mistral_regex": [True],
    "split_special_tokens": ["x", True],
}


def with_gguf(folder: Path) -> None:
    """A GGUF file in a folder whose tokenizer_config.json and config.json name code."""
    from tests.formats.gguf.writing import write_gguf

    write_gguf(folder, json.loads((folder / "config.json").read_text()), "q8_0", folder / "m.gguf")
    foreign(folder)
    (folder / "model.safetensors").unlink()
    (folder / FILE).unlink()


def far(folder: Path) -> None:
    """Every token's number beyond the embedding."""
    known = json.loads((folder / FILE).read_text())
    known["model"]["vocab"] = {token: number + 4096 for token, number in known["model"]["vocab"].items()}
    known["added_tokens"] = [token | {"id": token["id"] + 4096} for token in known["added_tokens"]]
    (folder / FILE).write_text(json.dumps(known))


TEMPLATES: dict[str, str] = {
    "that does not end": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "that writes without end": "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "of a range too long": "{% for i in range(10**12) %}{% endfor %}",
    "that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "that divides by zero": "{{ 1 / 0 }}",
    "that reaches for Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "that includes a file": "{% include '/etc/passwd' %}",
    "that imports": "{% import 'os' as os %}",
    "that is cut": "{% for message in messages %}{{ message.content",
    "nested 500 deep": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "that wants what is not there": "{{ messages[5].content.x.y }}",
    "that raises": "{{ raise_exception('no') }}",
    "of gigabytes, made when it is read": "{{ 'a' * 3000000000 }}",
    "of gigabytes, made when it is rendered": "{{ messages[0].content * 300000000 }}",
    "of an endless number, in one step": "{{ 9 ** 100000000 }}",
    "that fails in gigabytes of words": "{{ raise_exception('a' * 900000000) }}",
    "of half a character": "{{ '\\ud800' }}",
    "that says nothing": "",
}


def in_folder(name: str, change: Change) -> Change:
    """What a change makes of a new folder within the model's."""

    def made(folder: Path) -> None:
        (folder / name).mkdir()
        change(folder / name)

    return made


def with_code(folder: Path) -> None:
    """A tokenizer that wants Python code of the folder, which writes a file where it is run."""
    (folder / "code_of.py").write_text(f"open({str(folder.parent / 'RAN')!r}, 'w')\nclass T: pass\n")
    values(SETTINGS, auto_map={"AutoTokenizer": ["code_of.T", "code_of.T"]}, tokenizer_class="T")(folder)


def slow_only(data: bytes) -> Any:
    """No tokenizer.json, a tokenizer.model."""
    return both(gone(FILE), content("tokenizer.model", data))


CASES = [
    Case("a whole tokenizer", lambda folder: None, (*RUN, "gguf"), outcome=WORKS),
    *(Case(f"tokenizer.json {name}", content(FILE, data), (*RUN, "gguf"), says=FILE) for name, data in DAMAGED.items()),
    *(Case(f"tokenizer.json {share:.0%}", cut(FILE, share), (*RUN, "gguf"), says=FILE) for share in (0.01, 0.3, 0.9, 0.999)),
    *(
        Case(f"tokenizer.json {key} {shown(value)}", values(FILE, **{key: value}), GGUF, outcome=EITHER)
        for key, found in PARTS.items()
        for value in found
    ),
    *(
        Case(f"tokenizer.json model.{key} {shown(value)}", within(FILE, ["model", key], value), GGUF, outcome=EITHER)
        for key, found in MODEL.items()
        for value in found
        if value is not GONE
    ),
    Case("tokenizer.json is a folder", a_folder(FILE), RUN, says=FILE),
    Case("tokenizer.json is a pipe", a_pipe(FILE), RUN, says=FILE),
    Case("tokenizer.json links to itself", a_loop(FILE), RUN, says=FILE),
    Case("tokenizer.json without end", endless(FILE), RUN, says=FILE),
    Case("tokenizer.json of 64 GB of zeros", sparse(FILE), RUN, says=FILE),
    Case("token numbers beyond the embedding", far, (*RUN, "gguf")),
    Case("no tokenizer at all", gone(FILE, SETTINGS), (*RUN, "gguf"), says="tokenizer"),
    Case("no tokenizer.json", gone(FILE), RUN, says="tokenizer"),
    Case("no tokenizer_config.json", gone(SETTINGS), RUN, outcome=WORKS),
    *(
        Case(
            f"tokenizer_config.json {name}",
            content(SETTINGS, data),
            GGUF,
            outcome=EITHER if name == "an empty object" else REFUSED,
            says="",
        )
        for name, data in DAMAGED.items()
    ),
    *(
        Case(f"tokenizer_config.json {key} {shown(value)}", values(SETTINGS, **{key: value}), GGUF, outcome=EITHER)
        for key, found in OPTIONS.items()
        for value in found
    ),
    Case("tokenizer_config.json is a pipe", a_pipe(SETTINGS), RUN, says=SETTINGS),
    Case("tokenizer_config.json is a folder", a_folder(SETTINGS), RUN, says=SETTINGS),
    Case("tokenizer.model alone, garbage", slow_only(b"garbage"), (*RUN, "gguf"), says="tokenizer"),
    Case("tokenizer.model alone, empty", slow_only(b""), (*RUN, "gguf"), says="tokenizer"),
    Case("tokenizer.model alone, zeros", slow_only(b"\0" * 5000), (*RUN, "gguf"), says="tokenizer"),
    Case("tokenizer.model alone, endless number", slow_only(b"\x0a" + b"\xff" * 100_000), (*RUN, "gguf"), says="tokenizer"),
    Case("tokenizer.model is a pipe", a_pipe("tokenizer.model"), RUN, says="tokenizer.model"),
    *(
        Case(f"{file} {name}", content(file, data), GGUF, outcome=EITHER)
        for file in (
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.json",
            "merges.txt",
            "chat_template.json",
            "chat_template.jinja",
        )
        for name, data in DAMAGED.items()
    ),
    *(
        Case(
            f"a chat template {name}",
            content("chat_template.jinja", text),
            ("chat",),
            outcome=EITHER if text in ("",) or "reaches" in name else REFUSED,
        )
        for name, text in TEMPLATES.items()
    ),
    *(
        Case(f"a chat template in tokenizer_config.json {shown(value)}", values(SETTINGS, chat_template=value), ("chat",), outcome=EITHER)
        for value in (5, [5], {}, ["a"], [{"name": "default", "template": "x"}], [{"name": "other", "template": 5}], {"default": 5})
    ),
    Case("chat_template.jinja is a pipe", a_pipe("chat_template.jinja"), RUN, says="chat_template.jinja"),
    Case("another chat template is a pipe", in_folder(OTHER_TEMPLATES, a_pipe("tool_use.jinja")), RUN, says="tool_use.jinja"),
    Case("merges.txt is a folder", a_folder("merges.txt"), RUN, says="merges.txt"),
    *(
        Case(f"special_tokens_map.json {key} {shown(value)}", values("special_tokens_map.json", **{key: value}), GGUF, outcome=EITHER)
        for key in ("bos_token", "eos_token", "additional_special_tokens")
        for value in (5, [], {}, "x", {"content": 5}, ["x", 5])
    ),
    Case("code for a tokenizer, beside a whole one", with_code, RUN, outcome=EITHER),
    Case("code for a tokenizer, and nothing else", both(with_code, gone(FILE)), RUN, says="tokenizer"),
    Case("a GGUF file, and code for its tokenizer", with_gguf, (*RUN, "plan"), outcome=EITHER),
]
