"""What a run found, in words and in one figure: the beginning of the report. Every word follows from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qlab.claims import FAILS, HOLDS, NOISE, Verdict
from qlab.show import figures
from qlab.show.drawing import Drawing
from qlab.support.wording import listed
from qlab.workbook.benchmark import ORIGINAL

LADDER = {8: "rtn-int8", 4: "rtn-int4", 3: "rtn-int3", 2: "rtn-int2"}


def sentences(results: Mapping[str, Any], verdicts: Sequence[Verdict]) -> list[str]:
    """One sentence each for what was measured: the model, fewer bits, the best formats, the methods, the guide's claims."""
    found = [model_sentence(results), ladder_sentence(results), best_sentence(results)]
    found += results.get("methods", {}).get("sentences", [])[:1]
    counts = Counter(v.verdict for v in verdicts)
    if decided := sum(counts[verdict] for verdict in (HOLDS, FAILS, NOISE)):
        found.append(
            f"Of the guide's {len(verdicts)} claims this run decides {decided}: {counts[HOLDS]} hold, {counts[FAILS]} do not, "
            f"and {counts[NOISE]} are within the noise of the measurement."
        )
    return [sentence for sentence in found if sentence]


def model_sentence(results: Mapping[str, Any]) -> str:
    if not (model := results.get("model")):
        return ""
    return f"The model {model['name']} has {model['parameters'] / 1e6:,.1f} million weights and takes {model['disk_bytes'] / 1e6:,.1f} MB."


def ladder_sentence(results: Mapping[str, Any]) -> str:
    """Lesson 1: how often the likeliest token stays, by bits."""
    kept = {bits: results[f"quality/{name}"]["top1"] for bits, name in LADDER.items() if f"quality/{name}" in results}
    if not kept:
        return ""
    shares = listed([f"{share:.1%}{'' if place else ' of cases'} at {bits} bits" for place, (bits, share) in enumerate(kept.items())])
    return f"With its decoder layers rounded to the nearest level, the likeliest next token stays the same in {shares}."


def best_sentence(results: Mapping[str, Any]) -> str:
    """Lesson 7: the nearest, smallest and fastest of the 4-bit formats, each with its figure."""
    if not (best := results.get("best")) or not all(best.values()):
        return ""
    rows = formats(results)
    nearest, smallest, fastest = (best[what] for what in ("nearest to the original", "smallest", "fastest generation here"))
    size, whole = (rows[name]["disk_bytes"] for name in (smallest[0], ORIGINAL))
    equal = f" (not told apart from it: {listed(nearest[1:])})" if nearest[1:] else ""
    distance = rows[nearest[0]]["quality"]["kl"]
    text = f"Of the formats with about 4 bits, {nearest[0]} is nearest to the original, KL {distance:.4f} nats a token{equal}"
    text += f"; {smallest[0]} is the smallest, {size / 1e6:,.1f} MB, {whole / size:.1f} times smaller than FP16"
    if speed := generation(rows[fastest[0]]):
        text += f"; {fastest[0]} generates fastest here, {speed:,.0f} tokens a second"
    return f"{text}."


def formats(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Lesson 7's record of each format; of several runtimes the one that generates fastest."""
    return {row["name"]: row for row in sorted(results["benchmarks"], key=generation)}


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
            title = f"{nearest} is nearest to the original, at {points[nearest][0]:,.1f} MB"
            return figures.scatter(points, title, "MB on disk", "KL divergence (nats/token)", log_y=True)
    kept = {bits: results[f"quality/{name}"]["kl"] for bits, name in LADDER.items() if f"quality/{name}" in results}
    if len(kept) < 2:
        return None
    most, least = max(kept), min(kept)
    title = f"{least} bits are {kept[least] / kept[most]:,.0f} times farther from the original than {most}"
    return figures.bars({f"{bits} bits": kl for bits, kl in kept.items()}, title, "KL divergence (nats/token, log scale)", log=True)
