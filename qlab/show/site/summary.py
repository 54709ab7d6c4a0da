"""What a run found, in words and in one figure: the beginning of the report. Every word follows from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qlab.claims import FAILS, HOLDS, NOISE, Verdict
from qlab.evaluate.quality import Quality
from qlab.recipes import parse
from qlab.show import figures
from qlab.show.drawing import Drawing
from qlab.support.steady import steady
from qlab.workbook.benchmark import EIGHT_BIT, ORIGINAL
from qlab.workbook.comparison import METHODS, nearest_sentence
from qlab.workbook.language.spoken import enumerated, gettext, say
from qlab.workbook.lesson import GROUP_SIZE

SHIPPED = "embedded"  # as the model in data/ is asked for
OURS, THEIRS = "GGUF Q4_K_M", "quality/llama.cpp's q4_k_m"  # a row of lesson 7, and a record of lesson 4
LADDER = {8: "rtn-int8", 4: "rtn-int4", 3: "rtn-int3", 2: "rtn-int2"}


def sentences(results: Mapping[str, Any], verdicts: Sequence[Verdict]) -> list[str]:
    """One sentence each for what was measured: the model, fewer bits, the best formats, the methods, the guide's claims."""
    found = [model_sentence(results), ladder_sentence(results), best_sentence(results), method_sentence(results)]
    counts = Counter(v.verdict for v in verdicts)
    if decided := sum(counts[verdict] for verdict in (HOLDS, FAILS, NOISE)):
        text = (
            "Of the guide's {all} claims this run decides {decided}: {hold} hold, {fail} do not, and {noise} are within the noise of the "
            "measurement."
        )
        found.append(say(text, all=len(verdicts), decided=decided, hold=counts[HOLDS], fail=counts[FAILS], noise=counts[NOISE]))
    return [sentence for sentence in found if sentence]


def model_sentence(results: Mapping[str, Any]) -> str:
    if not (model := results.get("model")):
        return ""
    text = "The model '{name}' has {weights:,.1f} million weights and takes {size:,.1f} MB."
    said = [say(text, name=model["name"], weights=model["parameters"] / 1e6, size=model["disk_bytes"] / 1e6)]
    if model["name"] == SHIPPED:
        said.append(gettext("It is tiny, comes with this workbook to try methods on, and has read docstrings in English only."))
    said.append(
        gettext("What follows ranks formats and methods on this model and this machine; on another model the order may be another.")
    )
    return " ".join(said)


def ladder_sentence(results: Mapping[str, Any]) -> str:
    """Lesson 1: how often the likeliest token stays, by bits."""
    kept = {bits: results[f"quality/{name}"]["top1"] for bits, name in LADDER.items() if f"quality/{name}" in results}
    if not kept:
        return ""
    first, *others = kept.items()
    shares = [say("{share:.1%} of cases at {bits} bits", share=first[1], bits=first[0])]
    shares += [say("{share:.1%} at {bits} bits", share=share, bits=bits) for bits, share in others]
    text = "With its decoder layers rounded to the nearest level, the likeliest next token stays the same in {shares}."
    return say(text, shares=enumerated(shares))


def best_sentence(results: Mapping[str, Any]) -> str:
    """Lesson 7: the nearest, smallest and fastest of the 4-bit formats, each with its figure."""
    if not (best := results.get("best")) or not all(best.values()):
        return ""
    rows = formats(results)
    nearest, smallest, fastest = (best[what] for what in ("nearest to the original", "smallest", "fastest generation here"))
    size, whole = (rows[name]["disk_bytes"] for name in (smallest[0], ORIGINAL))
    equal = say(" (not told apart from it: {names})", names=enumerated(nearest[1:])) if nearest[1:] else ""
    count = len([name for name in rows if name not in (ORIGINAL, EIGHT_BIT)])
    text = "Of the {count} formats with about 4 bits in lesson 7, {name} is nearest to the original, KL {distance:.4f} nats a token{equal}"
    text = say(text, count=count, name=nearest[0], distance=rows[nearest[0]]["quality"]["kl"], equal=equal)
    small = "; {name} has the smallest file, {size:,.1f} MB, {times:.1f} times smaller than FP16"
    text += say(small, name=smallest[0], size=size / 1e6, times=whole / size)
    if generation(rows[fastest[0]]):
        text += fastest_said(rows[fastest[0]], fastest[1:])
    return " ".join([f"{text}.", *caveats(results, rows, fastest[0])])


def fastest_said(row: Mapping[str, Any], others: Sequence[str]) -> str:
    """The fastest format's speed, and what is not told apart from it; where its own rounds disagree, no format is called the fastest."""
    speed = row["figures"]["speed"]
    values = {"name": row["name"], "speed": speed["generation"], "spread": speed["generation_sd"], "others": enumerated(others)}
    if not steady(speed["generation"], speed["generation_sd"]):
        return say("; which one generates fastest here is not told, since the rounds of each disagree")
    text = say("; of those whose rounds agree {name} generates fastest here, {speed:,.0f} ± {spread:,.0f} tokens a second", **values)
    return text + (say(" (not told apart from it: {names})", names=values["others"]) if others else "")


def caveats(results: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], fastest: str) -> list[str]:
    """What the best formats' figures do not say: how much of the speed is the runtime's, and which Q4_K_M file it is."""
    said, original = [], rows[ORIGINAL]
    if pace(rows[fastest])[0] and generation(original) and rows[fastest]["runtime"] != original["runtime"]:
        text = "It ran in {runtime}, FP16 in {other} ({speed:,.0f} tokens a second): part of the difference is the runtime's."
        said.append(say(text, runtime=rows[fastest]["runtime"], other=original["runtime"], speed=generation(original)))
    if OURS in rows and (theirs := results.get(THEIRS)):
        text = "{name} is here the file that qlab writes; the one that llama.cpp's quantizer writes has KL {kl:.4f} (lesson 4)."
        said.append(say(text, name=OURS, kl=theirs["kl"]))
    return said


def method_sentence(results: Mapping[str, Any]) -> str:
    """Lessons 2 and 3: which method is nearest, said anew from its figures, since a record keeps no template; else as it was recorded."""
    said: list[str] = results.get("methods", {}).get("sentences", [])[:1]
    size = results.get("group-size", GROUP_SIZE)
    names = {method: f"quality/{parse(recipe.format(size)).name}" for method, recipe in METHODS.items()}  # as recorded: without defaults
    if not said or not all(name in results for name in names.values()):
        return "".join(said)
    return gettext(nearest_sentence({method: Quality(**results[name]) for method, name in names.items()}, results["model"]["name"]))


def formats(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Lesson 7's record of each format; of several runtimes the one that generates fastest, of those whose rounds agree where some do."""
    return {row["name"]: row for row in sorted(results["benchmarks"], key=pace)}


def pace(row: Mapping[str, Any]) -> tuple[bool, float]:
    """By which runs are ranked: those whose rounds agree before the others, then by their tokens a second."""
    speed = row["figures"] and row["figures"]["speed"]
    return bool(speed and steady(speed["generation"], speed["generation_sd"])), generation(row)


def generation(row: Mapping[str, Any]) -> float:
    """Tokens a second, 0 where there is no figure."""
    return float(row["figures"]["speed"]["generation"]) if row["figures"] else 0.0


def figure(results: Mapping[str, Any]) -> Drawing | None:
    """Distance from the original against size, of lesson 7's formats; else against bits, of lesson 1; none where neither was run."""
    if "benchmarks" in results:
        rows = {name: row for name, row in formats(results).items() if (row["quality"]["kl"] or 0) > 1e-9}
        points = {name: (row["disk_bytes"] / 1e6, row["quality"]["kl"]) for name, row in rows.items()}
        if points:
            nearest = min(points, key=lambda name: points[name][1])
            title = say("{name} is nearest to the original, at {size:,.1f} MB", name=nearest, size=points[nearest][0])
            if nearest == EIGHT_BIT and len(points) > 1:
                four = min((name for name in points if name != EIGHT_BIT), key=lambda name: points[name][1])
                title = say(
                    "{nearest}; of those with about 4 bits {name}, at {size:,.1f} MB", nearest=title, name=four, size=points[four][0]
                )
            return figures.scatter(points, title, gettext("MB on disk"), gettext("KL divergence (nats/token)"), log_y=True)
    kept = {bits: results[f"quality/{name}"]["kl"] for bits, name in LADDER.items() if f"quality/{name}" in results}
    if len(kept) < 2:
        return None
    most, least = max(kept), min(kept)
    title = "{least} bits are {times:,.0f} times farther from the original than {most}"
    title = say(title, least=least, times=kept[least] / kept[most], most=most)
    return figures.bars(
        {say("{bits} bits", bits=bits): kl for bits, kl in kept.items()}, title, gettext("KL divergence (nats/token, log scale)"), log=True
    )
