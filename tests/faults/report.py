"""What the scenarios count, and the table of it."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field

from tabulate import tabulate

__all__ = ["Scenario", "table"]

MAX_REASONS = 20  # that are kept for each scenario


@dataclass
class Scenario:
    """One row of the table: a kind of fault, how often it was tried, and what was lost.

    end: time (`time.monotonic`) after which no further try is begun.
    """

    name: str
    end: float = math.inf
    tries: int = 0
    lost: int = 0
    reasons: list[str] = field(default_factory=list)

    def goes_on(self, number: int) -> bool:
        """Whether to try again, with `number` tries in all; at least once, also after the end."""
        return self.tries < number and (not self.tries or time.monotonic() < self.end)

    def count(self, reason: str | None) -> None:
        """Count a try. `reason`: what was lost; None: nothing."""
        self.tries += 1
        if reason is not None:
            self.lost += 1
            if len(self.reasons) < MAX_REASONS:
                self.reasons.append(reason)
                sys.stderr.write(f"LOST, {self.name}: {reason}\n")


def table(scenarios: list[Scenario]) -> str:
    """The table of all scenarios, in Markdown."""
    rows = [(one.name, one.tries, one.tries - one.lost, one.lost) for one in scenarios]
    return tabulate(rows, ("scenario", "tries", "survived", "lost"), tablefmt="github")
