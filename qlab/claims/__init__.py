"""The guide's claims, and what this run's measurements make of each.

A claim of data/claims.yaml that a lesson can decide has a test (`ledger.py`): a rule in words, and a small function from the
recorded results to a verdict with the measured figure. The rest say why nothing was decided, and what would decide them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from qlab import DATA
from qlab.claims.ledger import TESTS
from qlab.claims.rules import ADVICE, FAILS, HOLDS, NOISE, OPEN, UNTESTABLE, Results, Test
from qlab.serve.runtimes.registry import RUNTIMES
from qlab.support.wording import Sentence

__all__ = ["ADVICE", "FAILS", "HOLDS", "NOISE", "OPEN", "TESTS", "UNTESTABLE", "Results", "Test", "Verdict", "judge", "load_claims"]


@dataclass(frozen=True)
class Verdict:
    """What came out for a claim, the figure or reason, and the rule by which it was decided (empty where nothing was)."""

    claim: dict[str, Any]
    verdict: str
    measured: str
    rule: str = ""


def load_claims() -> list[dict[str, Any]]:
    """data/claims.yaml."""
    return yaml.safe_load((DATA / "claims.yaml").read_text())


def judge(results: Results, lesson: str | None = None) -> list[Verdict]:
    """A verdict on every claim (of one lesson, from its records alone): `results` are the records of the lessons, by name."""
    verdicts = []
    for claim in load_claims():
        if lesson and claim["lesson"] != lesson:
            continue
        test = TESTS.get(claim["id"])
        if test is None:
            verdicts.append(Verdict(claim, *undecided(claim)))
            continue
        try:
            verdict, measured = test.decide(results)
            verdicts.append(Verdict(claim, verdict, measured, test.rule))
        except KeyError as missing:
            why = Sentence(
                "these records have no result {missing}; run the lesson that records it, unless it left it out for this model",
                missing=str(missing),
            )
            if lesson:
                text = "this lesson has no result {missing}; the report's first page looks for it in all lessons"
                why = Sentence(text, missing=str(missing))
            verdicts.append(Verdict(claim, OPEN, why, test.rule))
    return verdicts


def undecided(claim: dict[str, Any]) -> tuple[str, str]:
    """Why a claim without a test has none: it is advice, it needs a machine or a runtime, or nobody has written its test yet."""
    if claim["test"] == "advice":
        return ADVICE, "a recommendation or a definition: no measurement decides it"
    if claim["test"] == "machine":
        return UNTESTABLE, claim["how"]
    for runtime in RUNTIMES.values():
        if claim["id"].startswith(f"{runtime.name}-"):
            if runtime.present():
                text = "{runtime} is on this machine, but no lesson of this release puts this to it"
                return OPEN, Sentence(text, runtime=runtime.label)
            text = "Needs {runtime}, which is not on this machine. To get it: {install}"
            return UNTESTABLE, Sentence(text, runtime=runtime.label, install=runtime.install)
    return OPEN, Sentence("No lesson of this release does it yet. What would: {how}", how=claim["how"])
