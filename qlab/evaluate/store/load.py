"""What servers gave under load, as figures of the table of everything measured."""

from __future__ import annotations

from qlab.evaluate.store.results import Figure
from qlab.serve.crowd import Served, Service


def load_figures(served: Served, service: Service) -> list[Figure]:
    """Throughput, waiting and memory of a server under load; or why there are none."""
    under = {"cache": served.cache, "context": service.context, "sequences": service.sequences, "threads": service.threads}
    under |= {"device": "cuda" if service.gpus else "cpu"}
    if not served.levels:
        return [Figure("output under load", None, None, "tok/s", under, served.problem)]
    found = [Figure("memory served", float(served.held), None, "B", under)]
    for level in served.levels:
        asked = under | {"at a time": level.concurrency, "prompts": level.requests}
        found.append(Figure("output under load", level.output_throughput, None, "tok/s", asked))
        found += [Figure(f"TTFT {name}", level.ttft[name], None, "s", asked) for name in ("p50", "p99") if name in level.ttft]
        found += [Figure(f"TPOT {name}", level.tpot[name], None, "s", asked) for name in ("p50", "p99") if name in level.tpot]
    return found
