"""The sweep file: what is wrong is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlab.support.errors import UserError
from qlab.sweep.plan import read_sweep

GOOD = """models: [embedded]
recipes:
  - nf4
  - q4_k_m
evaluation:
  window: 64
gates:
  kl: 0.1
"""


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "plan.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, GOOD))
    assert (sweep.recipes, sweep.evaluation.window, sweep.evaluation.tokens) == (["nf4", "q4_k_m"], 64, 20480)
    assert (sweep.limits.tries, sweep.device, sweep.gates) == (2, "cpu", {"kl": 0.1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "device: gpu\n", "line 9: no device 'gpu': expected cpu or cuda"),
        (GOOD.replace("window", "windw"), "line 6: evaluation.windw is no key of a sweep: expected one of text, window, tokens"),
        (GOOD + "calibraton: {}\n", "calibraton is no key of a sweep: expected one of models, recipes, lessons, calibration"),
        (GOOD.replace("64", "one"), "line 6: evaluation.window: Input should be a valid integer"),
        (GOOD.replace("64", "1"), "line 6: evaluation.window: Input should be greater than or equal to 2"),
        (GOOD.replace("  - q4_k_m", "  - 4"), "line 4: recipes.1: Input should be a valid string"),
        (GOOD.replace("  kl", "  bleu"), "line 8: no gate 'bleu': expected kl, perplexity"),
        (
            GOOD + "bench:\n  recipes: [nf4, q5_k_m]\n",
            "line 10: bench is of 'q5_k_m': expected one of the recipes of this file, or original",
        ),
        (GOOD + "bench: {repetitions: 1}\n", "line 9: bench.repetitions: Input should be greater than or equal to 2"),
        (GOOD + "load: {concurrency: [1, 0]}\n", "line 9: load.concurrency.1: Input should be greater than or equal to 1"),
        ("models: [embedded]\nlessons: {04_gguf: {}}\nload: {}\n", "line 3: load is of the formats of recipes, and there are none"),
        (GOOD.replace("models: [embedded]\n", ""), "line 1: models: Field required"),
        ("models: [", "expected YAML with models and recipes"),
        ("- a", "holds no mapping"),
        ("", "holds no mapping"),
        (b"\xff\xfe\x00", "expected a"),
        ("a: &a [*a]", "plan.yaml"),
        ("!!python/object/apply:os.system ['true']", "expected YAML"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read_sweep(written(tmp_path, text))
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400
