"""The README's support table, made from what tests/contract/test_architectures.py found.

`python -m tests.support.support_table` puts it between the README's markers; with --check it only looks whether it is
there; with --measure it runs the tests first and writes docs/support.json anew.
"""

import argparse
from pathlib import Path

import pytest

from pipeline.records import Record
from tests.support.families import FAMILIES

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "docs" / "support.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- support -->", "<!-- /support -->"
TESTS = ROOT / "tests" / "contract" / "test_architectures.py"
PROPERTY = "support"
"""Name under which the tests record what they found."""
MEASURING = pytest.StashKey[bool]()
"""Set in pytest's config while docs/support.json is being written: then nothing is held against it."""

BACKENDS = {"gguf": "GGUF", "gptq": "GPTQ", "awq": "AWQ", "onnx": "ONNX"}


class Found(Record):
    """What one test found out about a family and a backend."""

    family: str
    backend: str
    reason: str | None
    by: str | None


class Answer(Record):
    """What a backend says to a family: None where it takes it, else why not."""

    reason: str | None
    by: str | None = None
    """Which of its tools takes it, where that is not the usual one."""


class Row(Record):
    """One family."""

    title: str
    architecture: str
    backends: dict[str, Answer]


class Support(Record):
    """All of them."""

    families: dict[str, Row]


def load() -> Support:
    """Read docs/support.json."""
    return Support.load(SUPPORT)


def render(support: Support) -> str:
    """Return the table as Markdown: yes, or no with a number that the list below the table explains."""
    reasons: list[str] = []
    lines = [
        "| Family | Architecture | " + " | ".join(BACKENDS.values()) + " |",
        "|---" * (2 + len(BACKENDS)) + "|",
    ]
    for row in support.families.values():
        cells = []
        for backend in BACKENDS:
            reason, by = row.backends[backend].reason, row.backends[backend].by
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            yes = f"yes, by {by}" if by else "yes"
            cells.append(yes if reason is None else f"no ({reasons.index(reason) + 1})")
        lines.append(f"| {row.title} | `{row.architecture}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))])


def insert(text: str, table: str) -> str:
    """Return the text with the table between the markers; ValueError when there are none."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no {BEGIN} followed by {END}")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


class Collector:
    """A pytest plugin that takes the findings out of the tests' reports."""

    def __init__(self) -> None:
        self.found: list[Found] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        """Tell the tests that they are being measured."""
        config.stash[MEASURING] = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test recorded; it records only after it has proved it."""
        if report.when == "call":
            self.found += [Found.model_validate(value) for name, value in report.user_properties if name == PROPERTY]


def measure() -> int:
    """Run the tests; write docs/support.json if every family met every backend and nothing failed."""
    collector = Collector()
    code = pytest.main([str(TESTS), "-q", "-m", "", "--durations=10"], plugins=[collector])
    answers = {(one.family, one.backend): Answer(reason=one.reason, by=one.by) for one in collector.found}
    missing = [
        f"{family} x {backend}" for family in FAMILIES for backend in BACKENDS if (family, backend) not in answers
    ]
    if code != 0 or missing:
        print(f"{SUPPORT} is left as it was; without an answer: {', '.join(missing) or 'none'}")
        return 1
    Support(
        families={
            name: Row(
                title=family.title,
                architecture=family.architecture,
                backends={backend: answers[name, backend] for backend in BACKENDS},
            )
            for name, family in FAMILIES.items()
        }
    ).save(SUPPORT)
    return 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the README differs")
    parser.add_argument("--measure", action="store_true", help="run the tests first; several minutes")
    arguments = parser.parse_args()
    if arguments.measure and measure():
        return 1
    text = README.read_text(encoding="utf-8")
    wanted = insert(text, render(load()))
    if arguments.check:
        if text != wanted:
            print("README.md: the support table is out of date; run `python -m tests.support.support_table`")
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    # The tests import this module under its name, and MEASURING must be the same object for them.
    from tests.support import support_table

    raise SystemExit(support_table.main())
