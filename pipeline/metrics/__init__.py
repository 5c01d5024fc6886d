"""Every metric of an artifact, once: where its value comes from, what is better, how it is shown and what it means.

Params, selection, report, plots and comparison read `METRICS`; a new metric is one more entry in `entries.py`, and its
name in those tables of the report that shall show it.
"""

from pipeline.metrics.entries import METRICS, TASK_METRICS, find, named, values
from pipeline.metrics.metric import Axis, Measured, Metric, Scale

__all__ = ["METRICS", "TASK_METRICS", "Axis", "Measured", "Metric", "Scale", "find", "named", "values"]
