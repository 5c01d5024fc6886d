"""The metrics, in the order in which records hold them.

Timings have a margin of 10 %, since two runs of one artifact on one machine differ by a few percent more than the
interval of either run tells.
"""

from collections.abc import Callable
from typing import Any

from evals.load import QUANTILES
from evals.statistics import Estimate
from pipeline.metrics import cost, formats
from pipeline.metrics.formats import MIB, fixed, percent, signed
from pipeline.metrics.metric import Axis, Measured, Metric
from pipeline.records.measurements import IN_PROCESS, LOAD, SERVED, SERVED_LOAD

Read = Callable[[Measured], Any]


def _of(part: Read, figure: str) -> Read:
    """Return what reads a figure of a part of the measurements, and None where that part is not there."""
    return lambda measured: getattr(part(measured), figure, None)


def _perplexity(measured: Measured) -> object:
    return measured.quality.perplexity


def _divergence(measured: Measured) -> object:
    return measured.quality.divergence


def _greedy(measured: Measured) -> object:
    return measured.quality.greedy


def _level(measured: Measured) -> object:
    return measured.level


def _served(measured: Measured) -> object:
    return measured.latency.served


def _median(figure: str) -> Read:
    """Return what reads the median of the repeats of a timing in process."""
    return lambda measured: getattr(getattr(measured.latency, figure), "median", None)


def _largest(figure: str) -> Read:
    """Return what reads the larger one of scoring's and timing's."""

    def read(measured: Measured) -> int | None:
        found = (getattr(measured.quality, figure), getattr(measured.latency, figure))
        return max((one for one in found if one is not None), default=None)

    return read


QUALITY = (
    Metric(
        name="perplexity", title="perplexity", read=_of(_perplexity, "perplexity"), better="less", margin=0.001,
        show=fixed(3), definition="exp(sum of -ln p(token) / tokens), on the same token ids for every runtime.",
    ),
    Metric(
        name="perplexity_ratio", title="perplexity vs reference, %", read=lambda one: one.quality.perplexity_ratio,
        better="less", margin=0.001, show=formats.excess,
        axis=Axis(
            field="perplexity_increase_percent", title="perplexity increase, %", convert=lambda v: 100 * (v - 1)
        ),
        definition="perplexity / the reference's - 1, paired token by token.",
    ),
    Metric(
        name="log_perplexity_ratio", title="ln ratio", read=lambda one: one.quality.log_perplexity_ratio,
        better="less", margin=0.001, scale="nats", show=signed(5),
        definition="ln(perplexity / the reference's), paired token by token.",
    ),
    Metric(
        name="bits_per_byte", title="bits/byte", read=_of(_perplexity, "bits_per_byte"), better="less", margin=0.001,
        show=fixed(4), definition="sum of -log2 p(token) / bytes of the text in UTF-8.",
    ),
    Metric(
        name="kld_mean", title="KLD, nats", read=_of(_divergence, "mean"), better="less", margin=0.0001, scale="nats",
        show=formats.nats, axis=Axis(field="kld_mean_nats", title="KLD, nats", logarithmic=True),
        definition="mean over tokens of the KL divergence, the sum over the whole vocabulary of p(reference) x "
        "ln(p(reference) / p(artifact)) of the next-token distributions.",
    ),
    Metric(
        name="kld_median", title="KLD median, nats", read=_of(_divergence, "median"), better="less", margin=0.0001,
        scale="nats", show=formats.nats, definition="median over tokens of the KL divergence.",
    ),
    Metric(
        name="kld_p95", title="KLD p95, nats", read=_of(_divergence, "p95"), better="less", margin=0.05,
        show=formats.nats, definition="95 % of tokens have at most this KL divergence.",
    ),
    Metric(
        name="kld_p99", title="KLD p99, nats", read=_of(_divergence, "p99"), better="less", margin=0.05,
        show=formats.nats, axis=Axis(field="kld_p99_nats", title="KLD p99, nats", logarithmic=True),
        definition="99 % of tokens have at most this KL divergence.",
    ),
    Metric(
        name="kld_p999", title="KLD p99.9, nats", read=_of(_divergence, "p999"), better="less", margin=0.05,
        show=formats.nats, definition="99.9 % of tokens have at most this KL divergence.",
    ),
    Metric(
        name="kld_maximum", title="KLD max, nats", read=_of(_divergence, "maximum"), better="less", margin=0.05,
        show=formats.nats, definition="the largest KL divergence of any token.",
    ),
    Metric(
        name="top1_agreement", title="top-1 agreement, %", read=_of(_divergence, "top1_agreement"), better="more",
        margin=0.001, scale="points", show=percent(1),
        axis=Axis(field="top1_agreement_percent", title="top-1 agreement, %", convert=lambda v: 100 * v),
        definition="share of tokens for which artifact and reference find the same token likeliest.",
    ),
    Metric(
        name="delta_p_mean", title="mean Δp, %", read=_of(_divergence, "delta_p_mean"), better="more", margin=0.001,
        scale="points", show=signed(3, 100),
        definition="mean of p(artifact) - p(reference) of the token that follows.",
    ),
    Metric(
        name="delta_p_rms", title="RMS Δp, %", read=_of(_divergence, "delta_p_rms"), better="less", margin=0.05,
        show=percent(3), definition="root mean square of p(artifact) - p(reference) of the token that follows.",
    ),
    Metric(
        name="greedy_length", title="greedy tokens in common", read=_of(_greedy, "length"), better="more", margin=0.5,
        scale="tokens", sample="prompts", show=fixed(1),
        definition="tokens before the first that differs from the reference's, in greedy continuations of beginnings "
        "of evaluation windows.",
    ),
    Metric(
        name="greedy_identical", title="greedy identical, %", read=_of(_greedy, "identical"), better="more",
        margin=0.01, scale="points", sample="prompts", show=percent(0),
        definition="share of those continuations that do not differ.",
    ),
    Metric(
        name="chat_template_agreement", title="chat template, %",
        read=lambda one: one.quality.chat_template_agreement, better="more", margin=0, scale="points", exact=True,
        show=percent(0),
        definition="share of test conversations that the artifact's own runtime renders to the checkpoint's ids.",
    ),
)  # fmt: skip

SIZE = (
    Metric(
        name="bytes", title="size", read=lambda one: one.quality.bytes, better="less", margin=0, exact=True,
        show=formats.size,
        axis=Axis(field="size_mib", title="size, MiB", convert=lambda v: v / MIB, logarithmic=True),
        definition="bytes of all files of the artifact.",
    ),
    Metric(
        name="bits_per_weight", title="bits/weight", read=lambda one: one.quality.bits_per_weight, better="less",
        margin=0, exact=True, show=fixed(2), axis=Axis(field="bits_per_weight", title="bits/weight"),
        definition="bits of the stored tensors / their parameters.",
    ),
    Metric(
        name="peak_rss_bytes", title="peak memory", read=_largest("peak_rss_bytes"), better="less", margin=0.05,
        exact=True, show=formats.size,
        definition="the process's largest resident set in scoring or timing, interpreter and libraries included.",
    ),
    Metric(
        name="peak_gpu_bytes", title="peak GPU memory", read=_largest("peak_gpu_bytes"), better="less", margin=0.05,
        exact=True, show=formats.size, optional=True,
        definition="the most that was in use on all GPUs together.",
    ),
)  # fmt: skip

SPEED = (
    Metric(
        name="load_seconds", title="load, s", read=lambda one: one.latency.load_seconds, better="less", margin=0.25,
        exact=True, part=LOAD, show=fixed(2), definition="from opening the artifact until it can answer.",
    ),
    Metric(
        name="ttft_seconds", title="TTFT, ms", read=_median("ttft_seconds"), better="less", margin=0.1,
        part=IN_PROCESS, show=formats.milliseconds, definition="first token - prompt handed over; one stream.",
    ),
    Metric(
        name="prefill_tokens_per_second", title="prefill tok/s", read=_median("prefill_tokens_per_second"),
        better="more", margin=0.1, part=IN_PROCESS, show=fixed(0), definition="prompt tokens / TTFT.",
    ),
    Metric(
        name="decode_tokens_per_second", title="decode tok/s", read=_median("decode_tokens_per_second"),
        better="more", margin=0.1, part=IN_PROCESS, show=fixed(0),
        axis=Axis(field="decode_tokens_per_second", title="decode tokens/s, one stream"),
        definition="tokens after the first / their time.",
    ),
)  # fmt: skip

SERVED_SPEED = (
    Metric(
        name="served_output_tokens_per_second", title="served tok/s", read=_of(_level, "output_tokens_per_second"),
        better="more", margin=0.1, sample="requests", part=SERVED, show=fixed(0),
        axis=Axis(field="served_output_tokens_per_second", title="served tokens/s"),
        definition="completion tokens / wall time, of all streams together.",
    ),
    Metric(
        name="served_requests_per_second", title="served requests/s", read=_of(_level, "requests_per_second"),
        better="more", margin=0.1, sample="requests", part=SERVED,
        definition="requests / wall time, of all streams together.",
    ),
    Metric(
        name="served_goodput_requests_per_second", title="goodput, requests/s",
        read=_of(_level, "goodput_requests_per_second"), better="more", margin=0.1, sample="requests", part=SERVED,
        definition="requests that keep both limits of serving.slo / wall time.",
    ),
    Metric(
        name="served_load_seconds", title="load as served, s", read=_of(_served, "load_seconds"), better="less",
        margin=0.25, exact=True, part=SERVED_LOAD, show=fixed(2),
        definition="from starting the gateway to its first token.",
    ),
    Metric(
        name="served_peak_rss_bytes", title="peak memory as served", read=_of(_served, "peak_rss_bytes"),
        better="less", margin=0.05, exact=True, show=formats.size,
        axis=Axis(
            field="served_peak_memory_mib", title="memory as served, MiB", convert=lambda v: v / MIB, logarithmic=True
        ),
        definition="the gateway's and its engine's largest resident sets, added up.",
    ),
    Metric(
        name="served_peak_gpu_bytes", title="peak GPU memory as served", read=_of(_served, "peak_gpu_bytes"),
        better="less", margin=0.05, exact=True, show=formats.size, optional=True,
        axis=Axis(
            field="served_peak_gpu_memory_mib", title="GPU memory as served, MiB", convert=lambda v: v / MIB,
            logarithmic=True,
        ),
        definition="on all GPUs together, by every process.",
    ),
)  # fmt: skip

WAITS = {
    "ttft": ("TTFT", "first chunk - request sent"),
    "tpot": ("TPOT", "(last chunk - first chunk) / (completion tokens - 1)"),
    "itl": ("ITL", "each gap between two chunks, in answers whose chunks hold one token each"),
    "end_to_end": ("end-to-end", "end of the answer - request sent"),
}
"""What a client waits for: the name that the field gives it, and what it is."""


def _wait(kind: str, quantile: str) -> Metric:
    title, meaning = WAITS[kind]
    logged = {"served_ttft_seconds_p50": "served_ttft_p50_ms"}
    name = f"served_{kind}_seconds_{quantile}"
    short = f"served {title}" if quantile == "p50" else f"served {title} {quantile}"
    return Metric(
        name=name, title=f"{short}, ms", read=lambda one: getattr(_waits(one, kind), quantile, None),
        better="less", margin=0.1, sample="requests", part=SERVED, show=formats.milliseconds,
        axis=Axis(
            field=logged[name], title=f"served {title} {quantile}, ms", convert=lambda v: 1000 * v, logarithmic=True
        )
        if name in logged
        else None,
        definition=f"{quantile} of {meaning}.",
    )  # fmt: skip


def _waits(measured: Measured, kind: str) -> object:
    return getattr(measured.level, f"{kind}_seconds", None)


def _rate(measured: Measured) -> Estimate | None:
    return measured.level.output_tokens_per_second if measured.level else None


COST = (
    Metric(
        name="price_per_million_tokens", title="price of 10^6 tokens, USD",
        read=lambda one: cost.price(one.cost, _rate(one)), better="less", margin=0.1, sample="requests", part=SERVED,
        show=formats.price, optional=True,
        axis=Axis(field="price_per_million_tokens", title="price of 10^6 tokens"),
        definition="price of an hour / output tokens of an hour at the measured rate, x 10^6.",
    ),
    Metric(
        name="break_even_tokens_per_month", title="break-even, tokens a month",
        read=lambda one: cost.break_even(one.cost, _rate(one)), better="less", margin=0.1, sample="requests",
        show=fixed(0), optional=True, definition="the machine's price of a month / the API's price of a token.",
    ),
)  # fmt: skip

METRICS = {
    metric.name: metric
    for metric in (
        *QUALITY, *SIZE, *SPEED, *SERVED_SPEED, *(_wait(kind, quantile) for kind in WAITS for quantile in QUANTILES),
        *COST,
    )
}  # fmt: skip
"""By name; those of tasks are made by `find`."""


def _accuracy(task: str) -> Metric:
    return Metric(
        name=f"accuracy.{task}", title=f"{task}, accuracy, %", read=_of(_task(task), "accuracy"), better="more",
        margin=0.01, scale="points", sample="documents", show=percent(1),
        axis=Axis(field=f"accuracy_{task}_percent", title=f"accuracy of {task}, %", convert=lambda v: 100 * v),
        definition=f"share of {task}'s documents that are answered right.",
    )  # fmt: skip


def _flips(task: str) -> Metric:
    return Metric(
        name=f"flips.{task}", title=f"{task}, flips, %", read=_of(_task(task), "flips"), better="less", margin=0.01,
        scale="points", sample="documents", show=percent(1),
        definition=f"share of {task}'s documents whose chosen answer is not the reference's.",
    )  # fmt: skip


def _task(name: str) -> Read:
    return lambda measured: measured.tasks.tasks.get(name)


TASK_METRICS = {"accuracy": _accuracy, "flips": _flips}
"""By the word before the point; behind it stands the task's name."""


def find(name: str) -> Metric | None:
    """Return the metric of that name; None where there is none. A task may have any name."""
    kind, _, task = name.partition(".")
    return TASK_METRICS[kind](task) if task and kind in TASK_METRICS else METRICS.get(name)


def named(name: str) -> Metric:
    """Return the metric of that name, which params.yaml was already checked for. KeyError where there is none."""
    found = find(name)
    if found is None:
        raise KeyError(name)
    return found


def values(measured: Measured) -> dict[str, Estimate | None]:
    """Read every metric of an artifact; None for one that was not measured."""
    of_tasks = (make(task) for task in measured.tasks.tasks for make in TASK_METRICS.values())
    return {metric.name: _estimate(metric.read(measured)) for metric in (*METRICS.values(), *of_tasks)}


def _estimate(found: Estimate | float | None) -> Estimate | None:
    return found if found is None or isinstance(found, Estimate) else Estimate(value=found)
