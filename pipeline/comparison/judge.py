"""What a difference means: better, worse, same or unclear.

A metric has a margin: the change that nobody would act on, or that two runs of one and the same thing show. With the
change turned so that more is worse, and its 95 % interval:

    worse    the whole interval lies beyond the margin
    better   the whole interval lies beyond it on the other side
    same     the whole interval lies within the margin
    unclear  anything else, and figures that were not taken alike
"""

from typing import Literal

from evals.statistics import Estimate
from pipeline.metrics import Metric

Verdict = Literal["better", "worse", "same", "unclear"]


def judge(metric: Metric, old: Estimate, change: Estimate) -> Verdict:
    """Hold a change (new - old) against its margin."""
    sign = 1 if metric.better == "less" else -1
    margin = metric.margin * abs(old.value) if metric.scale == "%" else metric.margin
    if change.low is None or change.high is None:
        if not metric.exact and change.value != 0:
            return "unclear"
        low = high = sign * change.value
    else:
        low, high = sorted((sign * change.low, sign * change.high))
    if low > margin:
        return "worse"
    if high < -margin:
        return "better"
    return "same" if -margin <= low and high <= margin else "unclear"
