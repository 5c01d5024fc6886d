"""What a run with ASSAY_TEST_STRICT, as in CI, does not forgive: a test that was skipped because a tool is missing."""

import os
import re
from collections.abc import Generator
from typing import Any

import pytest

STRICT = bool(os.environ.get("ASSAY_TEST_STRICT"))

FORGIVEN = re.compile(
    r"other tests run its commands, or it has none"
    r"|ASSAY_TEST_VLLM names no program of vLLM"  # gigabytes, for a processor that vLLM's wheels are made for
    r"|wiki\.test\.raw is not there|no third-party checkpoint|no tasks in|\S+ is not there$"  # data that is not Assay's
)
"""Reasons to skip a test on a machine that has every tool."""


def _unforgiven(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Return the reason for which a test was skipped, where CI must not skip it."""
    if not STRICT or not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return None if FORGIVEN.search(reason) else reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, Any]:
    """Turn an unforgiven skip of a test into a failure."""
    report = yield
    if (reason := _unforgiven(report)) is not None:
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, Any]:
    """Turn an unforgiven skip of a whole file into an error."""
    report = yield
    if (reason := _unforgiven(report)) is not None:
        report.outcome, report.longrepr = "failed", f"{collector.nodeid}: {reason}"
    return report
