"""What a million output tokens cost on this machine, and from which volume on it is cheaper than an API."""

from evals.statistics import Estimate
from pipeline.errors import ParamsError
from pipeline.params import CostParams, SelectionParams
from pipeline.records import Cost, Machine
from pipeline.sizing import hardware

SECONDS_PER_HOUR = 3600


METRICS = ("price_per_million_tokens", "break_even_tokens_per_month")


def cost(wanted: CostParams, machine: Machine, selection: SelectionParams) -> Cost | None:
    """Find the machine's price, in params.yaml or by its GPUs in the hardware table; None where there is none.

    ParamsError where selection chooses by a price that nobody knows.
    """
    price, source = wanted.price_per_hour, "cost.price_per_hour in params.yaml"
    assumptions = [
        "The machine does nothing else, and its price is paid for every hour, busy or not.",
        "Prompts cost nothing of their own: they are read in the same time in which the output tokens were counted, at "
        "the lengths of params.serving.",
    ]
    if price is None:
        found = hardware.by_gpu(machine.gpus[0].name) if machine.gpus else None
        if found is None or found.price_per_hour is None:
            _require_none({selection.objective.metric, *selection.constraints})
            return None
        price = found.price_per_hour / found.count * len(machine.gpus)
        source = f"{found.name} in pipeline/hardware.toml ({found.price_source})"
        assumptions.append(
            f"The machine is rented with {len(machine.gpus)} x {machine.gpus[0].name}, at the listed price on demand."
        )
    if wanted.api_price_per_million_tokens is not None:
        assumptions.append(
            "An artifact has a break-even volume only where it serves as many tokens a month at the measured rate. An "
            "API's price for prompts is left out, and so is whatever quality it has."
        )
    return Cost(
        price_per_hour=price,
        source=source,
        concurrency=selection.concurrency,
        hours_per_month=wanted.hours_per_month,
        api_price_per_million_tokens=wanted.api_price_per_million_tokens,
        assumptions=tuple(assumptions),
    )


def _require_none(chosen_by: set[str]) -> None:
    if asked := sorted(chosen_by & set(METRICS)):
        raise ParamsError(
            f"selection chooses by {asked[0]}, and the price of this machine is unknown: it has no GPU that "
            "pipeline/hardware.toml knows a price of; set cost.price_per_hour in params.yaml"
        )


def metrics(known: Cost | None, rate: Estimate | None) -> dict[str, Estimate | None]:
    """Turn output tokens per second into money: None without a price, or, for the break-even, without an API's.

    price = price an hour / (tokens/s x 3600) x 10^6, its interval from the rate's. Break-even = price of a month / an
    API's price: the same for all artifacts of a machine, but None for one whose month does not hold so many tokens.
    """
    found: dict[str, Estimate | None] = dict.fromkeys(METRICS)
    if known is None or rate is None or rate.value <= 0:
        return found
    found["price_per_million_tokens"] = _price(known, rate)
    if known.api_price_per_million_tokens is not None:
        volume = known.price_per_hour * known.hours_per_month / known.api_price_per_million_tokens * 1e6
        if volume <= rate.value * SECONDS_PER_HOUR * known.hours_per_month:
            found["break_even_tokens_per_month"] = Estimate(value=volume)
    return found


def _price(known: Cost, rate: Estimate) -> Estimate:
    per_second = known.price_per_hour / SECONDS_PER_HOUR * 1e6
    if not rate.low or not rate.high or rate.low < 0:
        return Estimate(value=per_second / rate.value)
    return Estimate(value=per_second / rate.value, low=per_second / rate.high, high=per_second / rate.low)
