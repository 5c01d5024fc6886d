"""Numbers as people read them."""

from collections.abc import Callable

MIB = 2**20

Format = Callable[[float], str]


def fixed(digits: int) -> Format:
    """Return what renders so many digits behind the point, with commas between thousands."""
    return lambda value: f"{value:,.{digits}f}"


def signed(digits: int, factor: float = 1) -> Format:
    """Return what renders a difference, times `factor`, with its sign."""
    return lambda value: f"{factor * value:+.{digits}f}"


def percent(digits: int) -> Format:
    """Return what renders a share in percent."""
    return lambda value: f"{100 * value:.{digits}f}"


def milliseconds(value: float) -> str:
    """Render seconds in milliseconds."""
    return f"{1000 * value:.1f}"


def excess(value: float) -> str:
    """Render a ratio as percent above one."""
    return f"{100 * (value - 1):+.2f}"


def nats(value: float) -> str:
    """Render a divergence, of whatever magnitude."""
    return f"{value:.5f}" if value < 0.01 else f"{value:.4f}"


def price(value: float) -> str:
    """Render an amount of money, of whatever magnitude."""
    return f"{value:.3g}"


def number(value: float) -> str:
    """Render a number of any magnitude with the digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def size(bytes_: float) -> str:
    """Render bytes in MiB or GiB."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / MIB:.1f} MiB"
