"""Which artifact won, and why the others lost."""

from typing import Literal

from pydantic import Field

from evals.statistics import Estimate
from pipeline.records.base import Failure, Record


class Standing(Record):
    """One artifact's place in the ranking."""

    name: str
    rank: int | None
    """None for an artifact that does not pass every gate or is unavailable."""
    metrics: dict[str, Estimate | None]
    gates: tuple["Gate", ...] = ()
    unavailable: str | None = None
    """Why it was not measured, or not all of it: then it is passed over, whatever figures there are."""
    failure: Failure | None = None
    """With `unavailable`: something went wrong, rather than being impossible here."""
    pareto: bool = False
    """No other artifact is as good in bytes, perplexity and served tokens/s and better in one of them."""
    disturbed: dict[str, str] = Field(default_factory=dict)
    """Parts of the latency measurement beside which too much else ran, each with what that was."""

    @property
    def missed(self) -> tuple["Gate", ...]:
        """The gates that it does not pass."""
        return tuple(gate for gate in self.gates if gate.verdict != "passes")


class Gate(Record):
    """One limit of selection.constraints and how one artifact stands to it."""

    metric: str
    relation: Literal["at_most", "at_least"]
    limit: float
    found: Estimate | None
    """None where it was not measured."""
    verdict: Literal["passes", "fails", "not enough data", "not measured", "busy machine"]
    """By the interval, where there is one: it lies within the limit, beyond it, or on both sides. Of a busy machine's
    figures only what a quiet one would confirm is a verdict; else this is "busy machine"."""
    doubt: str | None = None
    """What else ran while the figure was measured, where that was too much."""
    more: int | None = None
    """With not enough data, how many more windows (documents, prompts) would bring the interval to one side, should the
    value stay; None where no number would, the value being the limit."""


class Cost(Record):
    """What the price of a token rests on: every figure that went into it, to be printed beside it."""

    price_per_hour: float
    """In US dollars, of the whole machine."""
    source: str
    """Where the price is from: params.yaml, or an entry of pipeline/hardware.toml and what that names."""
    concurrency: int
    """Streams at which the tokens were counted."""
    hours_per_month: float
    api_price_per_million_tokens: float | None = None
    """What an API asks for as many output tokens; None where there is nothing to compare with."""
    assumptions: tuple[str, ...] = ()
    """One sentence each, for people."""


class Selection(Record):
    """The winner and why the others lost."""

    objective: dict[str, str]
    constraints: dict[str, dict[str, float | None]]
    winner: str | None
    ranking: tuple[Standing, ...]
    pareto_front: tuple[str, ...]
    cost: Cost | None = None
    """None where no price is known: then there are no metrics of cost either."""
