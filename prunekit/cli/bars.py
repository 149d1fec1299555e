"""Bars made of letters, for tables in a terminal."""

from collections.abc import Collection, Sequence

EIGHTHS = " ▏▎▍▌▋▊▉"
COLUMNS = "▁▂▃▄▅▆▇█"


def bar(value: float, largest: float, width: int = 12) -> str:
    """A bar as long as `value` is of `largest`, to an eighth of a letter; empty for what is not a number."""
    share = value / largest if largest > 0 and value == value else 0.0
    whole, rest = divmod(round(max(0.0, min(1.0, share)) * width * 8), 8)
    return ("█" * whole + EIGHTHS[rest]).rstrip()


def columns(values: Sequence[float | None], removed: Collection[int]) -> str:
    """One letter per value, as high as its rank among them; `x` for removed ones, `-` where there is no value.

    Ranks are drawn, since one value is often as large as all others together.
    """
    known = {index: value for index, value in enumerate(values) if value is not None}
    order = sorted(known, key=lambda index: known[index])
    steps = max(1, len(order) - 1)
    heights = {index: COLUMNS[rank * (len(COLUMNS) - 1) // steps] for rank, index in enumerate(order)}
    return "".join("x" if index in removed else heights.get(index, "-") for index in range(len(values)))
