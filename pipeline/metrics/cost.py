"""What a token costs, from a machine's price and the rate at which it serves."""

from evals.statistics import Estimate
from pipeline.records import Cost

SECONDS_PER_HOUR = 3600


def price(known: Cost | None, rate: Estimate | None) -> Estimate | None:
    """Return US dollars for a million output tokens, at `rate` of them a second; None without a price or a rate.

    It is price an hour / (tokens/s x 3600) x 10^6, its interval from the rate's.
    """
    if known is None or rate is None or rate.value <= 0:
        return None
    per_second = known.price_per_hour / SECONDS_PER_HOUR * 1e6
    if not rate.low or not rate.high or rate.low < 0:
        return Estimate(value=per_second / rate.value)
    return Estimate(value=per_second / rate.value, low=per_second / rate.high, high=per_second / rate.low)


def break_even(known: Cost | None, rate: Estimate | None) -> float | None:
    """Return the output tokens a month from which the machine is cheaper than an API; None where it never is.

    It is price of a month / an API's price of a token: the same for all artifacts of a machine, but None for one whose
    month does not hold so many tokens.
    """
    if known is None or known.api_price_per_million_tokens is None or rate is None:
        return None
    volume = known.price_per_hour * known.hours_per_month / known.api_price_per_million_tokens * 1e6
    return volume if volume <= rate.value * SECONDS_PER_HOUR * known.hours_per_month else None
