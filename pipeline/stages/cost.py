"""What this machine costs an hour, which prices of tokens rest on."""

from pipeline.errors import ParamsError
from pipeline.params import CostParams, SelectionParams
from pipeline.records import Cost, Machine
from pipeline.sizing import hardware

PRICED = ("price_per_million_tokens", "break_even_tokens_per_month")
"""Metrics that there are only where the price is known."""


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
    if asked := sorted(chosen_by & set(PRICED)):
        raise ParamsError(
            f"selection chooses by {asked[0]}, and the price of this machine is unknown: it has no GPU that "
            "pipeline/hardware.toml knows a price of; set cost.price_per_hour in params.yaml"
        )
