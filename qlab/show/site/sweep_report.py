"""What a sweep leaves for its readers: its page, tables for other programs, and cards beside the artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from qlab.show.site.sweep_page import TABLES, write_page
from qlab.sweep.cards import renew_cards
from qlab.sweep.jobs import Job, Subject
from qlab.sweep.plan import Sweep
from qlab.sweep.recommend import caches, fitting, recommendation
from qlab.sweep.results import Store, lessons_table, table
from qlab.sweep.speed import loads_table, speeds_table


@dataclass(frozen=True)
class SweepReport:
    """The report of a sweep of `models`, in the folder `out`, by what the `store` has of its `jobs`."""

    out: Path
    sweep: Sweep
    models: Mapping[str, Subject]
    jobs: Sequence[Job]
    store: Store

    @cached_property
    def caches(self) -> dict[str, float]:
        """Bytes of the KV cache that the constraints ask for, by model."""
        return caches(self.sweep, self.models)

    def live(self, state: str) -> None:
        """Write the page of a sweep that is running; `state` says in a sentence where it stands.

        Raises:
            OSError: it cannot be written.
        """
        write_page(self.out, self.tables(), [], state, True)

    def final(self, state: str) -> list[str]:
        """Write tables, page and cards; what to take, in sentences.

        Raises:
            UserError: the manifest of an artifact is damaged.
            OSError: a file cannot be written.
        """
        tables = self.tables()
        advice = recommendation(tables["table"], self.sweep)
        for name, found in tables.items():
            if len(found):
                found.to_csv(self.out / f"{name}.csv", index=False)
                found.to_parquet(self.out / f"{name}.parquet", index=False)
        write_page(self.out, tables, advice, state, False)
        renew_cards(self.jobs, self.store, self.models)
        return advice

    def formats(self) -> pd.DataFrame:
        """The table of models and formats."""
        return fitting(table(self.jobs, self.store), self.sweep, self.caches)

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables, by the names of their files (TABLES)."""
        found = (
            self.formats(), lessons_table(self.jobs, self.store, self.out), speeds_table(self.jobs, self.store),
            loads_table(self.jobs, self.store),
        )  # fmt: skip
        return dict(zip(TABLES, found, strict=True))
