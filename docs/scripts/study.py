"""What studies share: their settings, their cells, which are kept one by one, and how these are shown."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any


def settings_of_a_study(about: str | None) -> argparse.ArgumentParser:
    """What every study can be told."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the study; one that was begun goes on")
    parser.add_argument("--model", default="sample")
    parser.add_argument("--calib", default="sample", help="calibration text")
    parser.add_argument("--held-out", default="sample", help="text of the same kind to measure on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the calibration set")
    return parser


class Cells(dict[tuple[Any, ...], dict[str, Any]]):
    """Key -> what was found, kept in WORK/results.jsonl: a study that was stopped goes on from there."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.file = work / "results.jsonl"
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        super().__init__((tuple(cell["key"]), cell) for cell in map(json.loads, lines))

    def keep(self, key: tuple[Any, ...], work: Callable[[], dict[str, Any]]) -> None:
        """Do a cell, unless it is done."""
        if key not in self:
            self[key] = {"key": key, **work()}
            with self.file.open("a") as file:
                file.write(json.dumps(self[key]) + "\n")
            print(json.dumps(self[key]), flush=True)


def over_seeds(found: Sequence[float], seeds: int) -> str:
    """The mean, and in brackets how far the seeds lie apart, or how many of them are done; empty if none is."""
    if not found:
        return ""
    apart = f"{max(found) - min(found):.2f}" if len(found) == seeds else f"{len(found)} of {seeds} seeds"
    return f"{fmean(found):.2f} ({apart})"
