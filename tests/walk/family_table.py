"""docs/families.md, made of the tests' own lists; and its table with the figures of a run, from the file that pytest writes of it.

    python -m tests.walk.family_table > docs/families.md
    python -m pytest tests/walk/test_all_families.py tests/formats/gguf/test_families.py --junitxml=build/families.xml
    python -m tests.walk.family_table build/families.xml

Without a run a cell says what the tests hold: "yes" where a test goes over this family, "refused" where one sees that it is refused. With
one it is what the test noted, "yes" where it notes nothing, "refused", "failed" or "not tried".
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from xml.etree import ElementTree

from tests.formats.gguf.test_families import MORE, REFUSED, WRITTEN
from tests.walk.families import FAMILIES, Family
from tests.walk.test_all_families import RECIPES

WALK = "test_a_checkpoint_is_read_as_transformers_reads_it_and_its_blocks_compute_the_same"
MADE = "test_artifacts_are_what_the_methods_made"
PLAN = "test_the_plan_counts_what_a_token_reads_and_leaves_in_the_cache"
RUNS = "test_llama_cpp_computes_the_model_and_it_is_read_back"
REFUSES = "test_what_llama_cpp_computes_otherwise_is_refused"
HEADS = {"rtn-w4g32": "RTN", "awq-w4g32-cover": "AWQ", "gptq-w4g32-cover": "GPTQ", "tuned-w4g32-cover-steps2": "tuned", "nf4": "NF4"}
COLUMNS = {  # heads, tests and what these noted
    "walk": (WALK, "walk"),
    **{HEADS[recipe]: (MADE, recipe) for recipe in RECIPES},
    "GGUF F16": (RUNS, "f16"),
    "GGUF Q4_K_M": (RUNS, "q4_k_m"),
    "plan": (PLAN, ""),
}
Found = dict[tuple[str, str], dict[str, str]]
"""What was noted, by test and family; a test that failed has noted "failed"."""

BEFORE = """\
# Families

What the tests hold of each family of models, on a tiny random model that transformers' own class made and saved. ᴱ: a mixture of experts.
ᴵ: reads images too; its language model is quantized, and what reads images stays as it is. A family that is not listed may do as well:
qlab looks at the model's class and runs a block (`using.md`, Models).

- **walk**: the output of each block, computed by the walk, differs from that of transformers' class by less than 1e-5 of its norm.
- **RTN, AWQ, GPTQ, tuned, NF4** (4 bits, groups of 32, grids not searched): the artifact's logits differ from those of the weights that
  the method made by less than 1e-3. This says that the files hold what the method made, not how good the method is.
- **GGUF**: KL between llama.cpp's predictions from the file and those of the same weights in transformers, below 0.02 nats in F16 and,
  with llama.cpp's rounding of activations to 8 bits, below 0.05 in Q4_K_M. "refused": llama.cpp would compute another function, or knows
  none.
- **plan**: `qlab plan` counts the weights that a token reads, and what transformers' class leaves in the cache.

This file is made of the lists that the tests go over, and a test fails where it is not as these are: "yes" means that the suite has a
test of it, which must pass.

```sh
.venv/bin/python -m tests.walk.family_table > docs/families.md
```

The tests are `tests/walk/test_all_families.py` and `tests/formats/gguf/test_families.py`. With the figures that they note, the table is
printed by

```sh
.venv/bin/python -m pytest tests/walk/test_all_families.py tests/formats/gguf/test_families.py --junitxml=build/families.xml
.venv/bin/python -m tests.walk.family_table build/families.xml
```
"""

AFTER = """
## Memory of a walk over experts

`python -m tests.bench.expert_memory` makes up mixtures of 2.1 GB, quantizes them with 8 x 128 calibration tokens and holds the peak of
the process against what `--dry-run` said (two cores, PyTorch with one thread but for the first row and the last
two). Where runs were ended after the first of ten blocks (`--hidden 1024 --blocks 10 --first 1`), the other blocks have the same shape.

| mixture | recipe | blocks walked | predicted | found | |
|---|---|---|---|---|---|
| 8 experts, hidden 2048 | rtn-w4g128 | 5 of 5 | 1.90 GB | 1.78 GB | 0.94 |
| 64 experts, hidden 1024 | rtn-w4g128 | 1 of 10 | 1.10 GB | 1.03 GB | 0.94 |
| 8 experts, hidden 1024 | gptq-w4g128 | 1 of 10 | 1.38 GB | 1.40 GB | 1.02 |
| 64 experts, hidden 1024 | gptq-w4g128 | 1 of 10 | 1.12 GB | 1.06 GB | 0.95 |
| 8 experts, hidden 1024 | q4_k_m | 1 of 10 | 1.33 GB | 1.36 GB | 1.02 |
| 64 experts, hidden 1024 | q4_k_m | 1 of 10 | 1.15 GB | 1.15 GB | 1.00 |

## Mixtures of experts in runtimes

- **llama.cpp** runs the GGUF files: the columns above.
- **vLLM**: `tests/serve/test_vllm.py` has AWQ's and GPTQ's artifacts of a small Qwen3-MoE in vLLM 0.32 and holds its answers to the
  artifact's weights, but only where `make vllm` has made its environment; no workflow does. Its bound is wider than that for dense
  models, since vLLM's kernel for experts rounds more. No other mixture was run in vLLM.
- **AutoAWQ's and AutoGPTQ's own code** unpacks every expert of Mixtral's and Qwen3-MoE's artifacts, under the names that these families'
  files have, and transformers computes the same logits from what it unpacks to 1e-5: `tests/formats/test_experts.py`, in every run of the
  suite.
"""


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


def listed() -> Found:
    """The tests that there are, by the lists that they go over, with nothing noted."""
    over = {WALK: FAMILIES, MADE: FAMILIES, PLAN: FAMILIES, RUNS: WRITTEN, REFUSES: REFUSED}
    return {(test, family): {} for test, families in over.items() for family in families}


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
    """Lines of Markdown: a row a family, and below it what llama.cpp's files are refused for, and of what else there are some."""
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, family in FAMILIES.items():
        cells = [cell(found, test, what, name) for test, what in COLUMNS.values()]
        lines.append(f"| {title(name, family)} | {' | '.join(cells)} |")
    reasons = [f"- GGUF of {name} is refused: {reason}." for name, reason in REFUSED.items()]
    more = [f"{name} ({what})" for name, what in (each.split(", ", 1) for each in MORE)]
    return [*lines, "", *reasons, f"- GGUF is also held for {', '.join(more)}."]


def document() -> str:
    """The text of docs/families.md."""
    return "\n".join([BEFORE, *table(listed()), AFTER])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="that pytest wrote with --junitxml; without it, all of docs/families.md")
    file = parser.parse_args().file
    print("\n".join(table(noted(file))) if file else document(), end="\n" if file else "")


if __name__ == "__main__":
    main()
