"""What a difference means: better, worse, same or unclear.

A metric has a margin: the change that nobody would act on, or that two runs of one and the same thing show. With the
change turned so that more is worse, and its 95 % interval:

    worse    the whole interval lies beyond the margin
    better   the whole interval lies beyond it on the other side
    same     the whole interval lies within the margin
    unclear  anything else, and figures that were not taken alike
"""

import re
from dataclasses import dataclass
from typing import Literal

from evals.statistics import Estimate

Verdict = Literal["better", "worse", "same", "unclear"]

Scale = Literal["%", "points", "nats", "tokens"]
"""In what a difference is told: % of the old value, percentage points of a share, or the metric's own unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one metric's change is judged."""

    metrics: str
    """Pattern of their names."""
    better: Literal["less", "more"]
    margin: float
    """A share of the old value where the scale is %, else in the metric's own unit."""
    scale: Scale = "%"
    exact: bool = False
    """A figure that has no interval, and whose value counts as it is."""

    @property
    def margin_text(self) -> str:
        """The margin in the scale's unit."""
        factor = 100 if self.scale in ("%", "points") else 1
        return f"{factor * self.margin:g} {self.scale}"


RULES = (
    Rule(metrics="bytes|bits_per_weight", better="less", margin=0, exact=True),
    Rule(metrics="chat_template_agreement", better="more", margin=0, scale="points", exact=True),
    Rule(metrics="perplexity|perplexity_ratio|bits_per_byte", better="less", margin=0.001),
    Rule(metrics="log_perplexity_ratio", better="less", margin=0.001, scale="nats"),
    Rule(metrics="kld_mean|kld_median", better="less", margin=0.0001, scale="nats"),
    Rule(metrics="kld_.*|delta_p_rms", better="less", margin=0.05),
    Rule(metrics="top1_agreement", better="more", margin=0.001, scale="points"),
    Rule(metrics="delta_p_mean", better="more", margin=0.001, scale="points"),
    Rule(metrics="greedy_identical|accuracy[.].*", better="more", margin=0.01, scale="points"),
    Rule(metrics="flips[.].*", better="less", margin=0.01, scale="points"),
    Rule(metrics="greedy_length", better="more", margin=0.5, scale="tokens"),
    Rule(metrics="(served_)?peak_.*_bytes", better="less", margin=0.05, exact=True),
    Rule(metrics="(served_)?load_seconds", better="less", margin=0.25, exact=True),
    Rule(metrics=".*_per_second", better="more", margin=0.1),
    Rule(metrics=".*_seconds.*|price_.*|break_even_.*", better="less", margin=0.1),
)
"""The first that fits holds. Timings have a margin of 10 %, since two runs of one artifact on one machine differ by a
few percent more than the interval of either run tells."""

TIMED = re.compile(".*_per_second|.*_seconds.*|price_.*|break_even_.*")
"""Metrics that belong to a machine and to a load."""


def rule(metric: str) -> Rule | None:
    """Return how a metric is judged; None for one of which nobody said what is better."""
    return next((one for one in RULES if re.fullmatch(one.metrics, metric)), None)


def judge(rule: Rule, old: Estimate, change: Estimate) -> Verdict:
    """Hold a change (new - old) against its margin."""
    sign = 1 if rule.better == "less" else -1
    margin = rule.margin * abs(old.value) if rule.scale == "%" else rule.margin
    if change.low is None or change.high is None:
        if not rule.exact and change.value != 0:
            return "unclear"
        low = high = sign * change.value
    else:
        low, high = sorted((sign * change.low, sign * change.high))
    if low > margin:
        return "worse"
    if high < -margin:
        return "better"
    return "same" if -margin <= low and high <= margin else "unclear"
