"""Numbers in words, as tables, reports and cards write them."""

from collections.abc import Collection
from typing import Any


def number(value: Any) -> str:
    """A figure with two decimals and commas; what is not a number as it is."""
    return f"{value:,.2f}" if isinstance(value, int | float) else str(value)


def percent(share: float | None, digits: int = 1) -> str:
    """`12.5 %`; a dash for nothing."""
    return "-" if share is None else f"{share * 100:.{digits}f} %"


def change(ratio: float | None) -> str:
    """What a ratio adds: 1.25 is `+25.0 %`."""
    return "-" if ratio is None else f"{(ratio - 1) * 100:+.1f} %"


def multiple(ratio: float | None) -> str:
    """`x 1.21`; a dash for nothing."""
    return "-" if ratio is None else f"x {ratio:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """`0.95 to 1.14`; a dash for nothing."""
    return "-" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def plural(count: int, noun: str) -> str:
    """`1 block`, `3 blocks`, `2 matrices`."""
    many = f"{noun[:-1]}ces" if noun.endswith("x") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def megabytes(count: int) -> str:
    """Bytes in steps of a thousand: `10.2 MB`."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value = value / 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def span(counts: Collection[int]) -> str:
    """`376`, or `288 to 440`."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
