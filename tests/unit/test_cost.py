"""What a token costs, worked out by hand."""

from dataclasses import replace

import pytest

from evals.statistics import Estimate
from pipeline import metrics
from pipeline.errors import ParamsError
from pipeline.params import Bound, CostParams, Objective, SelectionParams
from pipeline.records import Gpu, Machine
from pipeline.stages import cost, selection
from tests.unit.test_selection import FAST, GOOD, SLOW

SERVED = "served_output_tokens_per_second"
FASTEST = SelectionParams(concurrency=2, objective=Objective(metric=SERVED, direction="maximize"))
CHEAPEST = SelectionParams(
    concurrency=2,
    objective=Objective(metric="price_per_million_tokens", direction="minimize"),
    constraints={"perplexity_ratio": Bound(at_most=1.01), "price_per_million_tokens": Bound(at_most=25)},
)


def machine(*gpus: str) -> Machine:
    found = tuple(Gpu(name=name, compute_capability="9.0", memory_mib=143771, driver="1") for name in gpus)
    return Machine(system="Linux", architecture="x86_64", cpu="c", cores=2, memory_gib=24, python="3.11", gpus=found)


def test_a_price_per_hour_becomes_a_price_per_million_tokens() -> None:
    """3.60 USD an hour is 0.001 a second; at 50 tokens a second a million take 20,000 seconds, so 20 USD."""
    known = cost.cost(CostParams(price_per_hour=3.6), machine(), FASTEST)
    assert known is not None
    rate = Estimate(value=50, low=40, high=100)
    price = metrics.cost.price(known, rate)
    assert price is not None
    assert [price.value, price.low, price.high] == pytest.approx([20, 10, 25])
    assert metrics.cost.break_even(known, rate) is None
    assert "params.yaml" in known.source


def test_break_even_is_a_months_price_over_the_apis_where_a_month_holds_it() -> None:
    """730 hours at 3.60 are 2628 USD: at 30 a million, 87.6 million tokens; 50 tokens/s make 131.4 million a month."""
    wanted = CostParams(price_per_hour=3.6, api_price_per_million_tokens=30)
    known = cost.cost(wanted, machine(), FASTEST)
    volume = metrics.cost.break_even(known, Estimate(value=50))
    assert volume is not None
    assert volume == pytest.approx(87.6e6)
    assert metrics.cost.break_even(known, Estimate(value=30)) is None, "78.8 million at most"


def test_the_price_comes_from_the_table_by_the_gpus_name() -> None:
    known = cost.cost(CostParams(), machine("NVIDIA H200", "NVIDIA H200"), FASTEST)
    assert known is not None
    assert known.price_per_hour == pytest.approx(2 * 5.58)
    assert "h200 in pipeline/hardware.toml" in known.source
    assert "runpod" in known.source
    assert cost.cost(CostParams(), machine(), FASTEST) is None
    assert cost.cost(CostParams(), machine("Unheard of"), FASTEST) is None


def test_choosing_by_an_unknown_price_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"chooses by price_per_million_tokens.*set cost.price_per_hour"):
        cost.cost(CostParams(), machine(), CHEAPEST)


def test_selection_takes_the_price_as_objective_and_constraint() -> None:
    known = cost.cost(CostParams(price_per_hour=3.6), machine(), CHEAPEST)
    result = selection.select(CHEAPEST, [replace(one, cost=known) for one in (GOOD, FAST, SLOW)])
    assert result.winner == "good"
    assert result.cost == known
    standing = {one.name: one for one in result.ranking}
    assert [gate.metric for gate in standing["slow"].missed] == ["price_per_million_tokens"]
    assert selection.select(FASTEST, [GOOD]).ranking[0].metrics["price_per_million_tokens"] is None
