"""The report's first sentences follow from the records, and a record that is not there leaves its sentence out."""

from __future__ import annotations

from typing import Any

import pytest

from qlab.claims import judge, load_claims
from qlab.recipes import parse
from qlab.show.site.summary import figure, sentences
from qlab.workbook.comparison import METHODS
from qlab.workbook.language.spoken import VARIABLE
from tests.show.titles.results import quality

LADDER = {f"quality/rtn-int{bits}": {"top1": 1 - 2.0**-bits, "kl": 2.0**-bits} for bits in (8, 4, 3, 2)}


def row(name: str, megabytes: float, kl: float, speed: float | None, spread: float = 1.0) -> dict[str, Any]:
    runtime = "llama.cpp" if name.startswith("GGUF") else "transformers"
    figures = speed and {"speed": {"generation": speed, "generation_sd": spread}}
    return {"name": name, "runtime": runtime, "disk_bytes": megabytes * 1e6, "quality": {"kl": kl}, "figures": figures}


BENCHMARKS = [
    row("FP16 original", 22, 0, 10),
    row("AWQ by qlab", 8, 0.02, None),
    row("GGUF Q4_K_M", 9, 0.01, 50),
    row("GGUF Q4_K_M", 9, 0.01, 70),
]
BEST = {"nearest to the original": ["GGUF Q4_K_M", "AWQ by qlab"], "smallest": ["AWQ by qlab"], "fastest generation here": ["GGUF Q4_K_M"]}


def test_the_best_formats_are_named_with_their_figures() -> None:
    (said, claims) = sentences({"benchmarks": BENCHMARKS, "best": BEST}, judge({}))
    assert said.startswith(
        "Of the 2 formats with about 4 bits in lesson 7, GGUF Q4_K_M is nearest to the original, KL 0.0100 nats a token ("
    )
    assert "(not told apart from it: AWQ by qlab)" in said
    assert "AWQ by qlab has the smallest file, 8.0 MB, 2.8 times smaller than FP16" in said
    assert "GGUF Q4_K_M generates fastest here, 70 ± 1 tokens a second." in said  # of two runtimes the faster
    assert claims.startswith(f"Of the guide's {len(load_claims())} claims this run decides")


def test_what_the_best_figures_do_not_say_is_said_beside_them() -> None:
    known = {"benchmarks": BENCHMARKS, "best": BEST}
    (said,) = sentences(known | {"quality/llama.cpp's q4_k_m": {"kl": 0.03}}, [])
    assert "It ran in llama.cpp, FP16 in transformers (10 tokens a second): part of the difference is the runtime's." in said
    assert said.endswith("the one that llama.cpp's quantizer writes has KL 0.0300 (lesson 4).")
    alike = [one | {"runtime": "vLLM"} for one in BENCHMARKS]
    assert sentences(known | {"benchmarks": alike}, [])[0].endswith("70 ± 1 tokens a second.")


def test_the_fastest_is_told_with_what_equals_it_and_not_where_its_rounds_disagree() -> None:
    equal = BEST | {"fastest generation here": ["GGUF Q4_K_M", "AWQ by qlab"]}
    (said,) = sentences({"benchmarks": BENCHMARKS, "best": equal}, [])
    assert "generates fastest here, 70 ± 1 tokens a second (not told apart from it: AWQ by qlab)." in said
    wild = [*BENCHMARKS[:2], row("GGUF Q4_K_M", 9, 0.01, 70, 60)]
    (said,) = sentences({"benchmarks": wild, "best": equal}, [])
    assert said.endswith("smaller than FP16; which one generates fastest here is not told, since the rounds of each disagree.")
    (said,) = sentences({"benchmarks": [*BENCHMARKS, row("GGUF Q4_K_M", 9, 0.01, 500, 400)], "best": BEST}, [])
    assert "70 ± 1 tokens a second" in said  # in the runtime whose rounds agree


def test_the_model_that_ships_is_told_from_a_readers_own() -> None:
    (own,), (shipped,) = (sentences({"model": {"name": name, "parameters": 1e6, "disk_bytes": 2e6}}, []) for name in ("m", "embedded"))
    assert own.startswith("The model 'm' has 1.0 million weights and takes 2.0 MB. What follows ranks formats and methods on this model")
    assert "It is tiny, comes with this workbook" in shipped


def test_the_nearest_of_eight_bits_is_not_called_the_nearest_of_four() -> None:
    drawn = figure({"benchmarks": [*BENCHMARKS, row("GGUF Q8_0", 12, 0.001, 60)]})
    assert drawn is not None
    assert drawn.words().startswith("GGUF Q8_0 is nearest to the original, at 12.0 MB; of those with about 4 bits GGUF Q4_K_M, at 9.0 MB.")


def test_fewer_bits_in_words_and_in_the_figure() -> None:
    said = sentences(LADDER, [])
    assert said == [
        "With its decoder layers rounded to the nearest level, the likeliest next token stays the same in 99.6% of cases at 8 bits, "
        "93.8% at 4 bits, 87.5% at 3 bits and 75.0% at 2 bits."
    ]
    drawn = figure(LADDER)
    assert drawn is not None
    assert drawn.words().startswith("2 bits are 64 times farther from the original than 8.")


def test_the_figure_of_the_formats_has_the_finding_as_its_title() -> None:
    drawn = figure({"benchmarks": BENCHMARKS})
    assert drawn is not None
    assert drawn.words().startswith("GGUF Q4_K_M is nearest to the original, at 9.0 MB.")
    assert "FP16" not in drawn.words()


@pytest.mark.parametrize("results", [{}, {"quality/rtn-int4": {"top1": 1.0, "kl": 0.1}}])
def test_what_was_not_measured_is_not_drawn(results: dict[str, Any]) -> None:
    assert figure(results) is None


def test_the_nearest_method_is_said_in_french_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: parse(recipe.format(64)).name for name, recipe in METHODS.items()}  # as lessons record them
    assert "gptq-w4g64" in sizes.values()
    results: dict[str, Any] = {"group-size": 64, "model": {"name": "m", "parameters": 1e6, "disk_bytes": 2e6}}
    results |= {f"quality/{recipe}": quality(place / 10).as_dict() for place, recipe in enumerate(sizes.values())}
    recorded = {"methods": {"sentences": ["as it was recorded"]}}
    assert sentences(results, [])[1:] == []
    assert "as it was recorded" in sentences(recorded, [])
    on = "On m, of RTN, AWQ, GPTQ symmetric, GPTQ asymmetric and AWQ + GPTQ, "
    assert sentences(results | recorded, [])[1].startswith(f"{on}the nearest to the original is RTN: KL 0.42500 ")
    monkeypatch.setenv(VARIABLE, "fr")
    assert sentences(results | recorded, [])[1].startswith(
        "Sur m, parmi RTN, AWQ, GPTQ symétrique, GPTQ asymétrique et AWQ + GPTQ, le plus proche de l'original est RTN\u00a0: "
    )
    assert "GPTQ symétrique (+" in sentences(results | recorded, [])[1]
