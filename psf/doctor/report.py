"""Findings as text."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable

from psf.doctor.examination import Finding, examine

__all__ = ["main"]


def _report(findings: list[Finding]) -> str:
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        row = f"{'!' if finding.is_fatal else ' '} {finding.subject:<{width}}  {finding.state}"
        indent = " " * (width + 4)
        lines += textwrap.wrap(row, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    fatal = _mends(finding for finding in findings if finding.is_fatal)
    optional = _mends(finding for finding in findings if finding.mend and not finding.is_fatal)
    lines += ["", "psf cannot run. Mend this, from the top:" if fatal else "psf can run.", *fatal]
    if optional:
        lines += ["", "Not necessary:", *optional]
    return "\n".join(lines) + "\n"


def _mends(findings: Iterable[Finding]) -> list[str]:
    """One line for each different way to mend, with all that it mends."""
    subjects: dict[str, list[str]] = {}
    for finding in findings:
        subjects.setdefault(finding.mend, []).append(finding.subject)
    return [f"  {', '.join(mended)}: {mend}" for mend, mended in subjects.items()]


def main() -> int:
    """Write the report to standard output; 0: psf can run, 1: it cannot."""
    findings = examine()
    sys.stdout.write(_report(findings))
    return int(any(finding.is_fatal for finding in findings))
