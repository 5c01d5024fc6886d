"""Whether an estimate fits a machine, with both numbers, and how fast it can be at most."""

from pipeline.sizing.estimate import Estimate
from pipeline.sizing.hardware import Hardware


def build_problems(estimate: Estimate, hardware: Hardware) -> list[str]:
    """Say what of a build does not fit; empty means that it does, as far as the machine's sizes are known."""
    making, found = estimate.making, []
    if hardware.build_bytes is not None and making.anonymous_bytes > hardware.build_bytes:
        found.append(
            f"building takes {gigabytes(making.anonymous_bytes)} of memory, of {gigabytes(hardware.build_bytes)}"
        )
    if hardware.disk_bytes is not None and making.disk_bytes > hardware.disk_bytes:
        found.append(f"building takes {gigabytes(making.disk_bytes)} of disk, of {gigabytes(hardware.disk_bytes)} free")
    return found


def serving_problems(estimate: Estimate, hardware: Hardware) -> list[str]:
    """Say what of serving does not fit, where the machine's memory is known."""
    runs_on, needed = hardware if estimate.serving.on_gpus else hardware.host, estimate.serving.bytes
    if runs_on is None or needed <= runs_on.usable_bytes:
        return []
    parts = f"weights {gigabytes(estimate.serving.weight_bytes)}, cache {gigabytes(estimate.serving.cache_bytes)}"
    return [f"serving takes {gigabytes(needed)} ({parts}), of {gigabytes(runs_on.usable_bytes)}"]


def decode_bound(estimate: Estimate, hardware: Hardware, streams: int = 1) -> float | None:
    """Return the most output tokens per second that memory can feed, of all streams together; None if unknown.

    Each step reads the weights once for all streams, and each stream's own keys and values. Nothing gets beyond it
    short of guessing several tokens at once, and models so small that a CPU's cache holds them.
    """
    runs_on = hardware if estimate.serving.on_gpus else hardware.host
    if runs_on is None or runs_on.total_bandwidth is None:
        return None
    weights = estimate.token_read_bytes if streams == 1 else estimate.read_bytes
    return streams * runs_on.total_bandwidth / (weights + streams * estimate.sequence_bytes)


def gigabytes(size: float) -> str:
    """Render bytes in GB (10^9), or MB, with three digits that matter."""
    value = size / 1e9
    if value < 0.995:
        return f"{1000 * value:,.0f} MB" if value >= 0.0995 else f"{1000 * value:,.1f} MB"
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.1f} GB" if value >= 10 else f"{value:.2f} GB"
