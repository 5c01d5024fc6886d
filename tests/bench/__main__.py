"""`make bench`: what Assay costs over the bare tools, as ratios within one run. Never part of the tests.

python -m tests.bench              everything (about 80 minutes on 2 cores)
python -m tests.bench empty        the demo from a fresh clone with empty caches, to ranking and verified image, and its
                                   set-up and steps by hand
python -m tests.bench flow         the demo in a made environment against the same work by hand, then unchanged
python -m tests.bench unchanged    an unchanged run alone, of a flow that is run for it; --help
python -m tests.bench scoring      tokens per second of scoring against llama-perplexity, transformers, genai
python -m tests.bench tasks        multiple choice against lm-eval's own `hf` model
python -m tests.bench vocabulary   peak memory of scoring with a vocabulary of 150,000 tokens
python -m tests.bench gateway      the gateway against bare llama-server, at 1 and 8 streams; time until ready
python -m tests.bench overload     a minute of four times as many requests as can be answered
python -m tests.bench shipping     what a release sends after a change of code, and after none
python -m tests.bench engines      output tokens per second of the engines that serve, of one stream and of several
python -m tests.bench memory       peak memory of each conversion on checkpoints of random weights
python -m tests.bench sizing       what `assay plan` foretells of a billion parameters against what comes of it; not
                                   among everything, as it takes an hour
python -m tests.bench report       how long the report of 50 artifacts takes, and how large it is
python -m tests.bench interference what other work on the machine costs served speed; not among everything, as it shows
                                   where a limit comes from, and holds nothing against one
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.flow import empty, flow, unchanged
from tests.bench.gateway import gateway, overload
from tests.bench.interference import interference
from tests.bench.memory import memory
from tests.bench.report import report
from tests.bench.scoring import scoring, vocabulary
from tests.bench.serving import engines
from tests.bench.shipping import shipping
from tests.bench.sizing import sizing
from tests.bench.tasks import tasks
from tests.bench.workspace import Row

BENCHMARKS = {
    "empty": empty, "flow": flow, "unchanged": unchanged, "scoring": scoring, "tasks": tasks, "vocabulary": vocabulary,
    "gateway": gateway, "overload": overload, "shipping": shipping, "engines": engines, "memory": memory,
    "report": report, "sizing": sizing, "interference": interference,
}  # fmt: skip
ASKED_FOR = ("sizing", "unchanged", "interference")
"""Run when they are named only."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that were named, or all; return 1 when one is beyond its limit."""
    unknown = sorted(set(arguments) - set(BENCHMARKS))
    if unknown:
        raise SystemExit(f"{unknown[0]}: no such benchmark; known: {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="assay-bench-") as scratch:
        for name in arguments or [name for name in BENCHMARKS if name not in ASKED_FOR]:
            folder = Path(scratch) / name
            folder.mkdir()
            rows += BENCHMARKS[name](folder)
            _show(rows)
    return int(any(row[3] in ("over", "under") for row in rows))


def _show(rows: list[Row]) -> None:
    table = Table("what", "measured", "limit", "verdict", box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
