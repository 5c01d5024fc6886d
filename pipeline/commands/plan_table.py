"""A plan, and the tier table, on a terminal."""

from itertools import groupby

from rich.markup import escape
from rich.table import Table

from pipeline.commands import plan
from pipeline.commands.plan import Matrix, Plan, Row
from pipeline.report.terminal import console
from pipeline.sizing.fit import gigabytes
from pipeline.sizing.tiers import Cell

COLUMNS = (
    "artifact", "size", "bits/weight", "weights in memory", "cache, KB/token", "serving", "building", "disk to build",
    "tok/s at most, 1", "all", "verdict",
)  # fmt: skip


def print_plan(found: Plan) -> None:
    """Print what is known of the model and the machine, a row for each artifact, and what is in the way."""
    out = console()
    for line in _heading(found):
        out.print(line, highlight=False)
    grid = Table(*COLUMNS, box=None, pad_edge=False)
    for column in grid.columns[1:-1]:
        column.justify = "right"
    for row in found.rows:
        grid.add_row(*map(escape, _cells(row)), style="dim" if row.refused else None)
    out.print(grid)
    for line in plan.obstacles(found.rows):
        out.print(f"  {escape(line)}", highlight=False)


def print_matrix(found: Matrix) -> None:
    """Print a row for each tier: weights, what serving needs, and the smallest hardware, at each width."""
    out = console()
    widths = sorted({cell.bits for cell in found.cells}, reverse=True)
    grid = Table("model", *(f"{bits} bits" for bits in widths), box=None, pad_edge=False)
    for tier, cells in groupby(found.cells, key=lambda cell: cell.tier):
        grid.add_row(tier, *(_tier(cell) for cell in cells))
    out.print(grid)
    out.print(
        f"Weights / needed with scales, {found.concurrency} x {found.context_tokens} tokens of cache in 16 bits and "
        "the runtime; the smallest hardware of pipeline/hardware.toml that holds it, and its price an hour",
        highlight=False,
    )


def _heading(found: Plan) -> list[str]:
    machine = found.hardware
    how = "counted from config.json alone" if found.counted else f"stored as {found.dtype}"
    active = "" if found.active_parameters > 0.8 * found.parameters else f", {billions(found.active_parameters)} active"
    speed = machine.bandwidth_bytes_per_second
    gpus = f"{machine.count} x {machine.gpu}, " if machine.gpu else ""
    return [
        f"{escape(found.checkpoint)}: {billions(found.parameters)} parameters{active}, {how}, "
        f"{gigabytes(found.checkpoint_bytes)}; cache {found.cache_bytes_per_token / 1000:.1f} KB/token in 16 bits",
        f"{machine.name}: {gpus}{gigabytes(machine.usable_bytes)} usable, "
        f"{'bandwidth unknown' if speed is None else f'{speed / 1e9:,.0f} GB/s'} ({escape(machine.source)})",
        *([] if machine.price_per_hour is None else [f"${machine.price_per_hour:g} an hour ({machine.price_source})"]),
        f"serving: {found.concurrency} streams of {found.context_tokens:,} tokens, filled; building: nothing cached",
    ]


def _cells(row: Row) -> list[str]:
    if row.refused is not None or row.bytes is None:
        return [row.name, *["-"] * (len(COLUMNS) - 2), "cannot be made of it"]
    sizes = (row.weight_bytes, row.serving_bytes, row.build_memory_bytes, row.build_disk_bytes)
    weights, serving, memory, disk = ("-" if size is None else gigabytes(size) for size in sizes)
    rates = (row.decode_tokens_per_second_at_most, row.decode_tokens_per_second_at_most_all)
    one, every = ("-" if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates)
    per_token = f"{(row.cache_bytes_per_token or 0) / 1000:,.1f}"
    bits = f"{row.bits_per_weight:.2f}"
    return [row.name, gigabytes(row.bytes), bits, weights, per_token, serving, memory, disk, one, every, _verdict(row)]


def _verdict(row: Row) -> str:
    built = "not built" if row.build_obstacles else "builds"
    served = "not served" if row.serving_obstacles else "serves"
    return f"{built}, {served}"


def _tier(cell: Cell) -> str:
    many = f"{cell.machines} x " if cell.machines > 1 else ""
    price = "" if cell.price_per_hour is None else f", ${cell.price_per_hour:,.2f}/h"
    return f"{gigabytes(cell.weight_bytes)} / {gigabytes(cell.needed_bytes)}\n{many}{cell.hardware}{price}"


def billions(count: int) -> str:
    """Render a number of parameters as people say it."""
    return f"{count / 1e9:,.2f}B" if count >= 1e9 else f"{count / 1e6:,.1f}M"
