"""What is known of one metric."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from evals.load import Level
from evals.statistics import Estimate
from pipeline.metrics import formats
from pipeline.metrics.formats import Format
from pipeline.records import Cost, Latency, Quality, Standing, Tasks

Scale = Literal["%", "points", "nats", "tokens"]
"""In what a difference is told: % of the old value, percentage points of a share, or the metric's own unit."""

Sample = Literal["windows", "prompts", "documents", "requests"]
"""What the sample of a metric is counted in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that was measured of one artifact, and at how many streams its served figures count."""

    quality: Quality
    latency: Latency
    tasks: Tasks
    concurrency: int
    cost: Cost | None = None
    """What the price of a token rests on; None where the machine's price is unknown."""

    @property
    def level(self) -> Level | None:
        """The served figures at that concurrency, if they were measured."""
        return self.latency.served.at(self.concurrency) if self.latency.served else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A metric as an axis of a plot."""

    field: str
    """In the plots' data; it ends with the unit. FIELD_low and FIELD_high are the ends of the 95 % interval."""
    title: str
    convert: Callable[[float], float] = float
    """From the metric's unit to the axis's."""
    logarithmic: bool = False
    """Where all values are positive: of values that differ by orders of magnitude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of an artifact."""

    name: str
    """In params.yaml, selection.json and metrics.json; it ends with the unit, or is a ratio or a share."""
    title: str
    """Heads a column of the report; the unit stands behind a comma."""
    definition: str
    read: Callable[[Measured], Estimate | float | None]
    """Returns the value, with its 95 % interval where it has one; None where it was not measured."""
    better: Literal["less", "more"]
    margin: float
    """The change that nobody would act on, or that two runs of one and the same thing show: a share of the old value
    where the scale is %, else in the metric's own unit."""
    scale: Scale = "%"
    exact: bool = False
    """It has no interval, and its value counts as it is."""
    sample: Sample = "windows"
    part: str | None = None
    """The part of the latency measurement that it comes of; None for one that other processes cannot slow."""
    show: Format = formats.number
    axis: Axis | None = None
    optional: bool = False
    """Left out of a table where no artifact has a value, as a price where none is known."""

    @property
    def timed(self) -> bool:
        """Tell whether it belongs to a machine and a load."""
        return self.part is not None or self.sample == "requests"

    @property
    def margin_text(self) -> str:
        """The margin in the scale's unit."""
        factor = 100 if self.scale in ("%", "points") else 1
        return f"{factor * self.margin:g} {self.scale}"

    def count(self, measured: Measured) -> int | None:
        """Return the size of its sample."""
        if self.sample == "requests":
            return len(measured.level.exchanges) if measured.level else None
        if self.sample == "prompts":
            return measured.quality.greedy.prompts if measured.quality.greedy else None
        if self.sample == "documents":
            task = measured.tasks.tasks.get(self.name.partition(".")[2])
            return task.documents if task else None
        return measured.quality.windows

    def doubt(self, standing: Standing) -> str | None:
        """Say what else ran while it was measured, where that was too much for it to be trusted."""
        return standing.disturbed.get(self.part or "")
