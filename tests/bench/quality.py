"""Perplexity and MMLU by qlab and by lm-eval's own code, and what perplexity costs beside the forward passes it needs.

`make bench-quality`. A row for the original and for a few artifacts, which are made where they are missing. MMLU wants --task-data, a
folder with mmlu/test/SUBJECT_test.csv and mmlu/dev; lm-eval then runs as its own program, on its own loading. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from qlab.evaluate.local_tasks import questions, write
from qlab.evaluate.quality import measure_quality
from qlab.evaluate.tasks import run_tasks
from qlab.models.loading import load
from qlab.models.texts.mixture import load_text
from qlab.recipes import parse
from qlab.support.progress import bars_on_terminals
from qlab.workbook.lesson import Lesson, open_lesson

RECIPES = ("awq-w4g128", "gptq-w4g128", "nf4", "q8_0", "q4_k_m")
CHARACTERS, TOKENS = 4000, 480  # of the text that both read, which fits into a window
TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--work", default="build/artifacts")
    parser.add_argument("--task-data", type=Path)
    parser.add_argument("--subject", default="anatomy")
    o = parser.parse_args()
    lesson = open_lesson(o.model, "docstrings", 16, 256, "python-reference", 16, 512, o.work)
    for name in ("original", *RECIPES):
        model = lesson.reference if name == "original" else load(lesson.artifact(parse(name)).source)
        ours, theirs, tokens = perplexities(lesson, model)
        print(f"{name}: perplexity {ours:.4f}, by lm-eval's loglikelihood_rolling {theirs:.4f}, {tokens} tokens", flush=True)
    whole, plain = cost(lesson)
    print(f"perplexity takes {whole:.2f} s, the forward passes alone {plain:.2f} s: {whole / plain:.3f} (medians of {TIMES}, in turns)")
    if o.task_data:
        (score,) = run_tasks(lesson.reference, lesson.tokenizer, [f"mmlu_{o.subject}"], folder=o.task_data)
        print(f"MMLU {o.subject}, {score.documents} questions: {score.value:.4f} ± {score.stderr:.4f}; lm-eval's own program:")
        print(own_mmlu(lesson.source.path, o.subject, o.task_data))


def perplexities(lesson: Lesson, model: PreTrainedModel) -> tuple[float, float, int]:
    """Of one text, by qlab and by lm-eval, which puts a token before it and predicts every token from there on; and its tokens."""
    tokenizer = lesson.tokenizer
    text = tokenizer.decode(tokenizer.encode(load_text("python-reference")[:CHARACTERS], add_special_tokens=False)[:TOKENS])
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    judge = HFLM(pretrained=model, tokenizer=tokenizer, max_length=2 * TOKENS)
    (total,) = judge.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    window = torch.cat([torch.tensor([[judge.prefix_token_id]]), ids], dim=1)
    return measure_quality(model, window.expand(2, -1)).perplexity, math.exp(-total / ids.shape[1]), ids.shape[1]


def cost(lesson: Lesson) -> tuple[float, float]:
    """Seconds of measure_quality over the evaluation windows, and of the model alone."""
    ours, plain = [], []
    for _ in range(TIMES):
        started = time.perf_counter()
        measure_quality(lesson.reference, lesson.evaluation)
        between = time.perf_counter()
        with torch.inference_mode():
            for window in lesson.evaluation.split(1):
                lesson.reference(input_ids=window, use_cache=False)
        plain.append(time.perf_counter() - between)
        ours.append(between - started)
    return statistics.median(ours), statistics.median(plain)


def own_mmlu(model: Path, subject: str, data: Path) -> str:
    """The line of lm-eval's table, its template over the same questions."""
    import lm_eval

    with tempfile.TemporaryDirectory() as work:
        files = {s: str(write(Path(work) / f"{s}.jsonl", questions(data / "mmlu" / s / f"{subject}_{s}.csv"))) for s in ("test", "dev")}
        config = {
            "include": str(Path(lm_eval.__file__).parent / "tasks/mmlu/default/_default_template_yaml"), "task": "own",
            "description": f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n",
            "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files, "cache_dir": f"{work}/cache"},
        }  # fmt: skip
        (Path(work) / "own.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
        command += ["--tasks", "own", "--include_path", work, "--device", "cpu", "--batch_size", "8"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return next((line for line in ran.stdout.splitlines() if "acc" in line), ran.stderr[-800:])


if __name__ == "__main__":
    with bars_on_terminals():
        main()
