"""The table of docs/families.md: what tests measured of each family, from the file that pytest writes of its run.

    python -m pytest tests/walk/test_all_families.py tests/formats/gguf/test_families.py --junitxml=build/families.xml
    python -m tests.walk.family_table build/families.xml

A cell is what the test noted, "yes" where a test passed that notes nothing, "refused" where one saw that, and "failed" or "not tried".
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from xml.etree import ElementTree

from tests.formats.gguf.test_families import REFUSED
from tests.walk.families import FAMILIES, Family
from tests.walk.test_all_families import RECIPES

WALK = "test_a_checkpoint_is_read_as_transformers_reads_it_and_its_blocks_compute_the_same"
MADE = "test_artifacts_are_what_the_methods_made"
PLAN = "test_the_plan_counts_what_a_token_reads_and_leaves_in_the_cache"
RUNS = "test_llama_cpp_computes_the_model_and_it_is_read_back"
REFUSES = "test_what_llama_cpp_computes_otherwise_is_refused"
COLUMNS = {  # heads, tests and what these noted
    "walk": (WALK, "walk"),
    **dict(zip(("RTN", "AWQ", "GPTQ", "tuned", "NF4"), ((MADE, recipe) for recipe in RECIPES), strict=True)),
    "GGUF F16": (RUNS, "f16"),
    "GGUF Q4_K_M": (RUNS, "q4_k_m"),
    "plan": (PLAN, ""),
}
Found = dict[tuple[str, str], dict[str, str]]
"""What was noted, by test and family; a test that failed has noted "failed"."""


def noted(file: Path) -> Found:
    """What a run of pytest's tests noted; those that were skipped are left out."""
    found: Found = {}
    for case in ElementTree.parse(file).iter("testcase"):
        called = re.fullmatch(r"(\w+)\[(.+)\]", case.get("name", ""))
        if called is None or case.find("skipped") is not None:
            continue
        own = {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
        failed = any(case.find(kind) is not None for kind in ("failure", "error"))
        found[called[1], called[2]] = {"failed": ""} if failed else own
    return found


def cell(found: Found, test: str, name: str, family: str) -> str:
    """What to say of a family in the column of a test and what it noted."""
    if test == RUNS and found.get((REFUSES, family)) == {}:
        return "refused"
    own = found.get((test, family))
    if own is None:
        return "not tried"
    return "failed" if "failed" in own else own.get(name, "yes")


def title(name: str, family: Family) -> str:
    """The family's name, with a mark where it has experts, and where it reads images too."""
    return name + " ᴱ" * family.mixture + " ᴵ" * bool(family.parts)


def table(found: Found) -> list[str]:
    """Lines of Markdown: a row a family, and below it why llama.cpp's files are refused."""
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, family in FAMILIES.items():
        cells = [cell(found, test, what, name) for test, what in COLUMNS.values()]
        lines.append(f"| {title(name, family)} | {' | '.join(cells)} |")
    return [*lines, "", *(f"- GGUF of {name} is refused: {reason}." for name, reason in REFUSED.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="that pytest wrote with --junitxml")
    print("\n".join(table(noted(parser.parse_args().file))))


if __name__ == "__main__":
    main()
