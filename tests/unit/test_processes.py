"""Tools run as children: what they print, how far they are, how they fail."""

import sys

import pytest

from pipeline import processes
from pipeline.errors import BuildError, RequirementError


def test_lines_that_count_move_the_bar_and_are_returned(capfd: pytest.CaptureFixture[str]) -> None:
    script = r"print('[ 1/ 4] one\n[ 4/ 4] four\nend')"
    progress = processes.count(r"\[ *(\d+)/ *(\d+)\]")
    output = processes.run([sys.executable, "-c", script], what="the work", progress=progress)
    assert output == "[ 1/ 4] one\n[ 4/ 4] four\nend\n"
    assert "the work" in capfd.readouterr().err


def test_a_bar_drawn_with_carriage_returns_counts() -> None:
    seen = []
    read = processes.count(r"Writing: +(\d+)%", total=100)

    def progress(line: str) -> tuple[int, int] | None:
        seen.append(read(line))
        return seen[-1]

    script = r"import sys; sys.stderr.write('Writing:   0%|\rWriting:  50%|\rdone\n')"
    processes.run([sys.executable, "-c", script], what="the work", progress=progress)
    assert seen == [(0, 100), (50, 100), None]


def test_a_failure_gives_the_last_lines_without_the_bars() -> None:
    script = r"print('[1/2]'); print('out of\n\nluck'); raise SystemExit(3)"
    with pytest.raises(BuildError) as error:
        processes.run([sys.executable, "-c", script], what="the work", progress=processes.count(r"\[(\d)/(\d)\]"))
    assert str(error.value) == "the work exited with 3; its last lines:\n  out of\n  luck"


def test_a_tool_that_is_not_there() -> None:
    with pytest.raises(RequirementError, match="no-such-tool is not installed"):
        processes.run(["no-such-tool"], what="the work")
