"""Lessons 6 and 7: each title says what was measured, and the opposite where that came out; every title is French in French."""

from __future__ import annotations

import pandas as pd
import pytest

from qlab.evaluate.runtime import Memory, RuntimeFigures
from qlab.evaluate.speed import Speed
from qlab.plan.footprint import Footprint
from qlab.plan.pace import INT4
from qlab.plan.plan import Plan
from qlab.serve.crowd import Served
from qlab.serve.load import Level
from qlab.show import figures
from qlab.show.titles import benchmarks, deployment, gptq
from qlab.workbook.benchmark import Row
from qlab.workbook.drawn.spending import ALIKE, CHOSEN, RANDOM
from qlab.workbook.language.spoken import VARIABLE
from tests.show.titles.results import quality


def figures_of(generation: float = 100.0, sd: float = 1.0, loaded: int = 100) -> RuntimeFigures:
    speed = Speed(1000.0, 10.0, generation, sd, 64, 16, "llama.cpp", {})
    return RuntimeFigures(speed, Memory(loaded, loaded, loaded, Footprint(100, 100, 0, 0)), 1e9, 200.0)


def level(users: int, throughput: float, first: float) -> Level:
    times = {"p50": first, "p95": first, "p99": first}
    return Level(users, 8, 1.0, times, times, times, times, 1.0, throughput, throughput, {}, 0, 0)


def test_what_a_model_takes() -> None:
    plans = {"FP16": Plan(141, 5, 146, []), INT4: Plan(39.8, 5.4, 45.2, []), "INT2 g128": Plan(22.5, 5.4, 27.9, [])}
    said = deployment.memory("a 70B", plans, 16384, 1)
    assert said == "a 70B, 1 × 16,384 tokens: 146 GB in FP16, 45.2 in AWQ/GPTQ INT4 g128; the cache is 12% of that"
    plans[INT4] = Plan(39.8, 60, 99.8, [])
    assert deployment.memory("a 70B", plans, 131072, 1).endswith("the cache is 60% of that, more than the weights")


def test_bits_of_the_cache_beside_bits_of_the_weights() -> None:
    said = [deployment.caches({"f16": quality(), "q4_0": quality(farther)}, quality(0.1, -1)) for farther in (0.0, 0.2, 0.1)]
    assert said == [
        "4 bits of cache cost less than 4 bits of weights: KL 0.42500 against 0.52500",
        "4 bits of cache cost more than 4 bits of weights: KL 0.62500 against 0.52500",
        "4 bits of cache are not told apart from 4 bits of weights: KL 0.52500 against 0.52500",
    ]
    assert deployment.caches({"f16": quality()}, quality()) == "This model's cache cannot be rounded to 4 bits here"


def test_load() -> None:
    grows = deployment.load([level(1, 100, 0.1), level(2, 190, 0.15)])
    assert grows == "Throughput still grew with 2 at a time; the first token took 1.5 times as long as alone"
    stops = deployment.load([level(1, 100, 0.1), level(2, 190, 0.15), level(4, 195, 0.4)])
    assert stops == "Throughput hardly grows beyond 2 at a time; with 4 the first token takes 4.0 times as long as alone"


def row(name: str, loaded: int) -> Row:
    return Row(name, "llama.cpp", 1, quality(), figures_of(loaded=loaded))


def test_memory_against_the_plan() -> None:
    said = benchmarks.memory([row("a", 98), row("b", 560)])
    assert said == "Loaded, b takes 5.6 times what was predicted, more than any other; the least is 0.98 times"
    assert benchmarks.memory([row("a", 98)]) == "Loaded, no format takes more than 0.98 times what was predicted"
    assert benchmarks.memory([row("a", 560), row("a", 98)]).startswith("Loaded, a takes 5.6 times")  # in two runtimes
    assert benchmarks.memory([]) == "No format ran here"


def test_the_front() -> None:
    one, two = {"a": (1.0, 1.0), "b": (2.0, 2.0)}, {"a": (1.0, 2.0), "b": (2.0, 1.0), "c": (3.0, 3.0)}
    assert benchmarks.front(one, "size") == "a beats all others in size and in distance"
    assert benchmarks.front(two, "time") == "Not beaten in time and distance, of 3: a and b"
    assert benchmarks.front(two, "time", ["a"]) == "b beats all others in time and in distance; not ranked, since its rounds disagree: a"
    assert benchmarks.front(one, "time", ["a", "b"]) == "time; not ranked, since its rounds disagree: a and b"
    many = {str(n): (float(n), float(-n)) for n in range(6)} | {"x": (9.0, 9.0)}
    assert benchmarks.front(many, "size") == "Beaten in size and distance: 1 of 7"


def test_speeds() -> None:
    fast, near = figures_of(), figures_of(99.0)
    assert benchmarks.speeds("generation", {"a": fast, "b": near}) == "generation: a, with 100 tokens/s, is not told apart from b"
    alone = benchmarks.speeds("generation", {"b": figures_of(50.0), "a": fast})
    assert alone == "generation: fastest is a, 100 tokens/s, 50% of its ceiling"
    assert benchmarks.speeds("prompt", {"a": fast}) == "prompt: fastest is a, 1,000 tokens/s"
    assert benchmarks.speeds("prompt", {}) == "No format ran here"


def test_a_speed_whose_rounds_disagree_is_not_ranked() -> None:
    unsteady = figures_of(90.0, sd=120.0)
    said = benchmarks.speeds("generation", {"a": figures_of(), "b": unsteady})
    assert said == "generation: fastest is a, 100 tokens/s, 50% of its ceiling; not ranked, since its rounds disagree: b"
    assert benchmarks.speeds("generation", {"b": unsteady}) == "generation; not ranked, since its rounds disagree: b"


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (0.6, "60% of those of 16 tokens, but the likeliest token at 97% of all positions"),
        (0.98, "98% of those of 16 tokens, and the likeliest token at 97% of all positions"),
    ],
)
def test_tokens_and_answers(whole: float, said: str) -> None:
    rows = [("original (control)", 1.0, 1.0), ("a", 0.97, whole), ("b", 0.98, 0.1), ("as many", 0.99, whole)]
    table = pd.DataFrame(rows, columns=["format", "top1", "identical"]).assign(**{"prompts of": "all"})
    assert benchmarks.agreement(table, 16) == f"No format keeps more answers than a: {said}"


def test_where_eight_bits_keep_most_answers_those_of_four_are_said_too() -> None:
    rows = [("original (control)", 1.0, 1.0), ("GGUF Q8_0", 0.99, 0.8), ("a", 0.9, 0.1), ("b", 0.9, 0.3)]
    said = benchmarks.agreement(pd.DataFrame(rows, columns=["format", "top1", "identical"]).assign(**{"prompts of": "all"}), 16)
    assert said == ("GGUF Q8_0 keeps 80% of answers of 16 tokens and 99% of likeliest tokens; with about 4 bits 10% to 30% of answers stay")


def served(name: str, *rates: float) -> Served:
    return Served(name, "a runtime", "f16", [level(8**place, rate, 0.1) for place, rate in enumerate(rates)])


def test_which_format_leads_under_load() -> None:
    four, half = served("Q4", 100, 150, 200), served("F16", 50, 148, 300)
    assert deployment.crowd([four, half]) == "The formats change places: most tokens/s at 1 at a time from Q4, at 64 from F16"
    same = deployment.crowd([four, served("F16", 50, 90, 100)])
    assert same == "Q4 gives most tokens/s at every load; with 64 at a time 2.0 times the next"
    tied = deployment.crowd([four, served("F16", 50, 90, 199)])
    assert tied == "Most tokens/s at 1 at a time: Q4; at 64: Q4 and F16 (formats within 5% are not told apart)"
    between = deployment.crowd([four, served("F16", 50, 300, 100)])
    assert between == "Q4 gives most tokens/s at 1 and at 64 at a time, but not at every load between"
    alone = deployment.crowd([four, Served("F16", "a runtime", "f16", problem="it did not start")])
    assert alone == "Q4 gives 200 tokens/s with 64 at a time; no other format was served"
    assert deployment.crowd([Served("F16", "a runtime", "f16", problem="it did not start")]) == "No format gave an answer"


CURVES = {CHOSEN: [(3.1, 0.5), (4.0, 0.2), (4.5, 0.1)], RANDOM: [(3.1, 0.5), (4.1, 0.26), (4.4, 0.2)], ALIKE: [(3.1, 0.5), (4.1, 0.25)]}


def test_ways_to_choose_widths_are_held_against_each_other_at_one_size() -> None:
    said = benchmarks.damage(CURVES, 4.1)
    assert said == (
        "In 4.10 bits a weight, widths by what each layer costs have 77% of the predicted KL of widths at random, and 80% of that of "
        "one width for all, 4.10 bits"
    )
    turned = benchmarks.damage(CURVES | {CHOSEN: [(3.1, 0.5), (4.1, 0.25), (4.5, 0.1)]}, 4.1)
    assert "have 96% of the predicted KL of widths at random, and 100% of that of one width for all, 4.10 bits" in turned


def test_which_kind_of_layer_gets_most_bits() -> None:
    table = pd.DataFrame({"q_proj": [3, 4], "v_proj": [6, 8], "up_proj": [4, 4]})
    assert benchmarks.widths(table) == "Most bits for v_proj, 7.0 in the mean over the blocks; fewest for q_proj, 3.5"
    crossed = benchmarks.widths(pd.DataFrame({"q_proj": [3, 4], "v_proj": [4, 3]}))
    assert crossed == "Each kind of layer has 3.5 bits in the mean; single layers have 3 to 4"
    assert benchmarks.widths(pd.DataFrame({"q_proj": [4, 4], "v_proj": [4, 4]})).startswith(
        "Every layer has 4 bits: within this budget none"
    )


def test_where_quality_is_lost() -> None:
    table = pd.DataFrame({"q_proj": [0.01, 0.01, 0.03, 0.03], "v_proj": [0.01, 0.01, 0.05, 0.05]})
    assert benchmarks.layers("a", table) == "a: most is lost in v_proj, 3 %; the last blocks lose 4.0 times as much as the first"
    assert benchmarks.layers("a", table[::-1]).endswith("the first blocks lose 4.0 times as much as the last")
    assert benchmarks.layers("a", table[:2]).endswith("the first blocks and the last lose alike")
    assert benchmarks.layers("a", table[:1]) == "a: most is lost in q_proj, 1 % of the output"
    weights = benchmarks.layers("NF4", table[:1] / 2, data=False)
    assert weights == "NF4, made without calibration text: 0.5 to 0.5 % of its weights, not of its outputs"


def test_a_title_is_french_and_stays_within_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    title = gptq.calibration({gptq.AS_IT_IS: {1: 1.2, 16: 0.5}, gptq.SHRUNK: {1: 1.1, 16: 0.5}, gptq.DIAGONAL: {1: 1.0, 16: 1.0}})
    assert title.startswith("Avec 1 des 16 fenêtres de calibration, GPTQ fait pire que l'arrondi simple")
    assert "120\u00a0% de sa KL telle quelle, 110\u00a0% contractée" in title
    drawn = figures.lines({"a": [(1, 1), (2, 2)]}, title, "x", "y")
    assert drawn.words().startswith(title)  # on one line where it is read
    drawn.draw_without_rendering()
    (heading,) = [text for text in drawn.texts if text.get_text().startswith("Avec 1")]
    assert heading.get_text().count("\n") >= 1
    frame = drawn.bbox
    box = heading.get_window_extent()
    assert frame.x0 <= box.x0
    assert box.x1 <= frame.x1
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in drawn.axes)
