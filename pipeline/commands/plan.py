"""`assay plan`: what each artifact would take, and whether this or that machine can build and serve it.

From config.json and the headers of the weights alone, before any hour is spent; of a repository on the Hub nothing else
is fetched.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline import params
from pipeline.backends import AnyRecipe
from pipeline.checkpoints.config import is_quantized
from pipeline.params import Params
from pipeline.records import Record
from pipeline.sizing import cache, fit, hardware, read, tiers
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.hardware import Hardware
from pipeline.sizing.model import CONTEXT_UNKNOWN, Model
from pipeline.sizing.tiers import Cell


class Row(Record):
    """One artifact before it is built; sizes are None where the backend cannot take the architecture."""

    name: str
    refused: str | None = None
    """Why the backend cannot take this model on any machine."""
    bytes: int | None = None
    bits_per_weight: float | None = None
    weight_bytes: int | None = None
    """In memory when it is served, with the copies that kernels make."""
    cache_bytes_per_token: int | None = None
    serving_bytes: int | None = None
    """Weights, cache of all streams at the full context, and the runtime."""
    build_memory_bytes: int | None = None
    """At the peak, pages of files that the kernel may drop included."""
    build_disk_bytes: int | None = None
    decode_tokens_per_second_at_most: float | None = None
    """The limit that memory bandwidth sets to a single stream."""
    decode_tokens_per_second_at_most_all: float | None = None
    """The same for all streams together."""
    build_obstacles: tuple[str, ...] = ()
    serving_obstacles: tuple[str, ...] = ()


class Machine(Record):
    """What it would run on: so much of a `Hardware`."""

    name: str
    usable_bytes: int
    bandwidth_bytes_per_second: float | None = Field(validation_alias="total_bandwidth")
    source: str
    gpu: str | None = None
    count: int = 1
    price_per_hour: float | None = None
    price_source: str | None = None


class Plan(Record):
    """All that is said of one checkpoint on one machine."""

    checkpoint: str
    counted: bool
    """The parameters were counted from config.json; no header was read."""
    parameters: int
    active_parameters: int
    """That a token goes through."""
    dtype: str
    checkpoint_bytes: int
    context_tokens: int
    """The context of each stream, filled to the end."""
    concurrency: int
    cache_bytes_per_token: int
    """In 16 bits, by a runtime that keeps no more than it must."""
    hardware: Machine
    rows: tuple[Row, ...] = Field(min_length=1)


def plan(
    checkpoint: str | None = None,
    *,
    on: str = hardware.DETECT,
    context_tokens: int | None = None,
    concurrency: int | None = None,
    path: Path = params.PATH,
) -> Plan:
    """Size every artifact of params.yaml for a checkpoint, by default that of params.yaml itself.

    Raises ParamsError, CheckpointError or HubError.
    """
    wanted = params.load(path)
    revision = wanted.checkpoint.revision if checkpoint is None else None
    model = read.model(checkpoint or wanted.checkpoint.source, revision)
    machine = hardware.find(on, gpus=wanted.device != "cpu")
    longest = model.context_tokens or CONTEXT_UNKNOWN
    load = Load(
        streams=concurrency or max(wanted.serving.concurrency),
        context_tokens=min(context_tokens or CONTEXT_UNKNOWN, longest),
        calibration_tokens=wanted.corpus.calibration.windows * wanted.corpus.window_tokens,
        gpus=machine.kind == "gpu",
    )
    return Plan(
        checkpoint=model.name,
        counted=model.counted,
        parameters=model.parameters,
        active_parameters=model.active_parameters,
        dtype=model.dtype,
        checkpoint_bytes=model.bytes,
        context_tokens=load.context_tokens,
        concurrency=load.streams,
        cache_bytes_per_token=cache.token_bytes(model.config, cache.Use()),
        hardware=Machine.model_validate(machine, from_attributes=True),
        rows=tuple(_row(name, recipe, model, load, machine, wanted) for name, recipe in wanted.artifacts.items()),
    )


def _row(name: str, recipe: AnyRecipe, model: Model, load: Load, machine: Hardware, wanted: Params) -> Row:
    source = wanted.artifacts.get(recipe.source.rpartition("/")[2])
    if (reason := _refusal(recipe, source, model.config)) is not None:
        return Row(name=name, refused=reason)
    estimate = recipe.estimate(model, load)
    lacks = recipe.lacks(machine.gpus)
    missing = [one.what for one in recipe.requirements()] if machine.name == hardware.DETECT and not lacks else []
    both = [lacks] if lacks else [f"lacks {what}" for what in missing]
    return Row(
        name=name,
        **_sizes(estimate, machine, load),
        build_obstacles=(*both, *fit.build_problems(estimate, machine)),
        serving_obstacles=(*both, *fit.serving_problems(estimate, machine)),
    )


def _refusal(recipe: AnyRecipe, source: AnyRecipe | None, config: Mapping[str, Any]) -> str | None:
    """Ask the recipe, and the one that it is built from, whose config.json says how it was quantized."""
    if is_quantized(config):
        return "the checkpoint is already quantized; name the one that it was made from"
    if source is None:
        return recipe.refusal(config)
    told = {**source.model_dump(), "quant_method": source.backend}
    told["desc_act"] = told.get("activation_order", False)
    return source.refusal(config) or recipe.refusal({**config, "quantization_config": told})


def _sizes(estimate: Estimate, machine: Hardware, load: Load) -> dict[str, Any]:
    return {
        "bytes": estimate.bytes,
        "bits_per_weight": estimate.bits_per_weight,
        "weight_bytes": estimate.serving.weight_bytes,
        "cache_bytes_per_token": estimate.cache_token_bytes,
        "serving_bytes": estimate.serving.bytes,
        "build_memory_bytes": estimate.making.peak_bytes,
        "build_disk_bytes": estimate.making.disk_bytes,
        "decode_tokens_per_second_at_most": fit.decode_bound(estimate, machine),
        "decode_tokens_per_second_at_most_all": fit.decode_bound(estimate, machine, load.streams),
    }


class Matrix(Record):
    """The tier table."""

    context_tokens: int
    concurrency: int
    cells: tuple[Cell, ...]


def matrix(context_tokens: int | None = None, concurrency: int | None = None) -> Matrix:
    """Name the smallest hardware for each size and width."""
    context, streams = context_tokens or CONTEXT_UNKNOWN, concurrency or 1
    return Matrix(context_tokens=context, concurrency=streams, cells=tuple(tiers.matrix(context, streams)))


def obstacles(rows: Iterable[Row]) -> Iterator[str]:
    """Yield each obstacle once, with the artifacts that it is in the way of."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for what in dict.fromkeys((*filter(None, [row.refused]), *row.build_obstacles, *row.serving_obstacles)):
            found.setdefault(what, []).append(row.name)
    for what, names in found.items():
        yield f"{', '.join(names)}: {what}"
