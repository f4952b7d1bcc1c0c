"""What a look before the first node found: problems and warnings for users, and the slips behind them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_LFS = b"version https://git-lfs"


class PreflightError(RuntimeError):
    """The run cannot succeed; the message lists all that is missing, and what to put where."""


@dataclass
class Report:
    """What a check found: problems end the run, warnings do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def merged(cls, reports: Iterable[Report]) -> Report:
        """All that several checks found, each thing once."""
        every = list(reports)
        problems = dict.fromkeys(problem for report in every for problem in report.problems)
        return cls(list(problems), list(dict.fromkeys(warning for report in every for warning in report.warnings)))

    def raise_if_failed(self) -> None:
        """Do nothing if there are no problems.

        Raises:
            PreflightError: One error with every problem.
        """
        if self.problems:
            lines = "\n".join(f"- {problem}" for problem in self.problems)
            raise PreflightError(f"this run cannot succeed yet:\n{lines}")


def nearest(path: Path) -> str:
    """A name beside a missing one that it may be a slip of, as words to append; empty if there is none."""
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.7)
    return f" (did you mean '{close[0]}'?)" if close else ""


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file stands for its content, which Git LFS has not fetched."""
    with file.open("rb") as content:
        return content.read(len(_LFS)) == _LFS
