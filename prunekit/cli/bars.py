"""Bars made of letters, for tables in a terminal."""

EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(value: float, largest: float, width: int = 12) -> str:
    """A bar as long as `value` is of `largest`, to an eighth of a letter; empty for what is no number."""
    share = value / largest if largest > 0 and value == value else 0.0
    whole, rest = divmod(round(max(0.0, min(1.0, share)) * width * 8), 8)
    return ("█" * whole + EIGHTHS[rest]).rstrip()
