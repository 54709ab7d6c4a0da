"""lm-eval's tasks on files that lie here: its own prompts and metrics, another place for the data.

A folder may hold `mmlu/{dev,test}/SUBJECT_{dev,test}.csv` (question, four choices, answer 0 to 3, a header row),
`hellaswag/*.txt` or `*.txt.bz2` (six lines a task: context, index of the right ending, four endings, as llama.cpp's benchmark
has it) and `lambada/*.jsonl` (`text` a line).
"""

from __future__ import annotations

import bz2
import csv
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qlab.models.texts.jsonl import json_lines, read_utf8, string_of
from qlab.support.errors import UserError
from qlab.support.reading import LARGEST, check_regular

CLOZE = "heldout-cloze"
CONTEXT_WORDS, ENDING_WORDS, CHOICES = 48, 12, 4


def local_config(task: str, folder: Path, work: Path) -> dict[str, Any] | None:
    """What to tell lm-eval for `task` with the data in `folder`, rewritten into `work`; None for a task that has no such form here.

    Raises:
        UserError: a file is not as described above, or there is none for this task.
    """
    made: dict[str, Any] | None = None
    if task == "mmlu" or task.startswith("mmlu_"):
        made = mmlu(task, folder / "mmlu", work)
    elif task == "hellaswag":
        if files := sorted((folder / "hellaswag").glob("*.txt*")):
            data = write(work / "hellaswag.jsonl", hellaswag(files[0]))
            made = group([read_from(data, work, "validation", "hellaswag", process_docs=None, training_split=None)])
    elif task in ("lambada", "lambada_openai"):
        if files := sorted((folder / "lambada").glob("*.jsonl")):
            made = group([read_from(write(work / "lambada.jsonl", lambada(files[0])), work, "test", "lambada_openai")])
    else:
        return None
    if made is None:
        raise UserError(
            f"{folder} holds no data of {task[:60]} (qlab.evaluate.local_tasks says which files); the hub's is taken without --task-data"
        )
    return made


def group(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Tasks together: only where a task stands in a group does lm-eval fill in what it knows of it."""
    return {"group": "local", "task": configs}


def read_from(file: Path, work: Path, split: str, task: str, **changes: Any) -> dict[str, Any]:
    """lm-eval's registered `task` with its data in a JSON-lines file; what is made of it stays in `work`."""
    kept = {"data_files": {split: str(file)}, "cache_dir": str(work / "cache")}
    return {"task": task, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": kept} | changes


def mmlu(task: str, folder: Path, work: Path) -> dict[str, Any] | None:
    """One subject, or all that are there."""
    subjects = sorted(file.name.removesuffix("_test.csv") for file in (folder / "test").glob("*_test.csv"))
    wanted = [name for name in subjects if task in ("mmlu", f"mmlu_{name}")]
    if not wanted:
        return None
    configs = []
    for name in wanted:
        splits = {
            split: write(work / f"{name}_{split}.jsonl", questions(folder / split / f"{name}_{split}.csv")) for split in ("test", "dev")
        }
        config = read_from(splits["test"], work, "test", f"mmlu_{name}")
        config["dataset_kwargs"]["data_files"] = {split: str(file) for split, file in splits.items()}
        configs.append(config)
    return group(configs)


def questions(file: Path) -> Iterable[dict[str, Any]]:
    """MMLU's questions in one CSV file."""
    check_regular(file)
    found: list[dict[str, Any]] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream):
                answer = range(4).index(int(row["answer"]))
                choices = [row[f"choice{n}"] for n in range(4)]
                if row["question"] is None or None in choices:
                    raise ValueError(f"question {len(found) + 1} lacks a column")
                found.append({"question": row["question"], "choices": choices, "answer": answer})
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        said = str(error)[:120]
        raise UserError(f"{file.name}: expected columns question, choice0 to choice3 and answer, 0 to 3 ({said})") from error
    if not found:
        raise UserError(f"{file.name} holds no questions: expected columns question, choice0 to choice3 and answer, 0 to 3")
    return found


def lambada(file: Path) -> Iterable[dict[str, Any]]:
    """LAMBADA's passages, of which the last word is to be predicted."""
    passages = [{"text": string_of(record, "text", where)} for where, record in json_lines(read_utf8(file), file.name)]
    if not passages or not all(len(passage["text"].split()) > 1 for passage in passages):
        raise UserError(f"{file.name}: expected a JSON object on each line, with a passage of two words or more under 'text'")
    return passages


def hellaswag(file: Path) -> Iterable[dict[str, Any]]:
    """HellaSwag's tasks, six lines each, already cleaned as lm-eval cleans them."""
    check_regular(file)
    try:
        with bz2.open(file) if file.suffix == ".bz2" else file.open("rb") as stream:
            raw = stream.read(LARGEST + 1)  # of a few bytes bz2 makes gigabytes
        if len(raw) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        lines = raw.decode("utf-8").splitlines()
    except (OSError, EOFError, ValueError) as error:  # ValueError: not UTF-8, or a compressed stream cut off
        raise UserError(f"{file.name} is damaged ({error}): copy or download it again") from error
    if not lines or len(lines) % 6 or not all(line.strip() in ("0", "1", "2", "3") for line in lines[1::6]):
        raise UserError(f"{file.name}: expected six lines a task: context, index of the right ending, four endings")
    for first in range(0, len(lines), 6):
        yield {"query": lines[first], "label": int(lines[first + 1]), "choices": lines[first + 2 : first + 6]}


def cloze(text: str, count: int, work: Path, seed: int = 0) -> dict[str, Any]:
    """A multiple-choice task made of `text`: 48 words, and which twelve follow? The three wrong endings are drawn from elsewhere in it.

    Chance is 25 %. The same text and seed make the same task.

    Raises:
        UserError: the text is too short for one.
    """
    words, span = text.split(), CONTEXT_WORDS + ENDING_WORDS
    places = list(range(0, len(words) - span + 1, span))
    if len(places) <= CHOICES:
        raise UserError(f"the text has {len(words)} words; {CLOZE} needs at least {span * (CHOICES + 1)}")
    generator = random.Random(seed)
    chosen = sorted(generator.sample(places, min(count, len(places))))

    def ending(place: int) -> str:
        return " ".join(words[place + CONTEXT_WORDS : place + span])

    def tasks() -> Iterable[dict[str, Any]]:
        for place in chosen:
            endings = [ending(other) for other in generator.sample([p for p in places if p != place], CHOICES - 1)]
            answer = generator.randrange(CHOICES)
            endings.insert(answer, ending(place))
            yield {"query": " ".join(words[place : place + CONTEXT_WORDS]), "choices": endings, "label": answer}

    config = read_from(write(work / "cloze.jsonl", tasks()), work, "test", CLOZE)
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    return config | {
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_target": "{{label}}",
        "doc_to_choice": "choices", "metric_list": metrics, "metadata": {"version": 1.0},
    }  # fmt: skip


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
