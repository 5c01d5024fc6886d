"""What a reader holds the figures against: predictions, checks, inputs by digest, tools, the machine."""

from collections.abc import Mapping, Sequence

from pipeline.metrics.formats import percent, size
from pipeline.records import (
    Build,
    Checkpoint,
    Corpus,
    Latency,
    Machine,
    Predicted,
    Quality,
    Reference,
    Selection,
    Split,
)
from pipeline.report import blocks, table
from pipeline.report.blocks import Block, Cell, Code, Items, Prose, Table

LARGEST_ERROR = {"size": 0.03, "serving memory": 0.15}
"""The largest error of a prediction, as a share of what was measured; the memory of a build is an upper bound and has
none."""

Amounts = tuple[str, int | None, int | None]


def predicted(
    named: Sequence[str],
    builds: Mapping[str, Build],
    quality: Mapping[str, Quality],
    latency: Mapping[str, Latency],
) -> tuple[Block, ...]:
    """Set what `assay plan` foretold beside what came; say where it was worse than it should be."""
    rows, beyond = [], []
    for name in named:
        row = [Cell(text=name)]
        for what, told, found in _amounts(builds[name], quality[name], latency[name]):
            error = told / found - 1 if told is not None and found else None
            wrong = error is not None and abs(error) > LARGEST_ERROR.get(what, float("inf"))
            if wrong:
                beyond.append(f"{what} of {name} ({error:+.1%})")
            row += [table.plain(told, size), table.plain(found, size)]
            difference = table.plain(error, lambda v: f"{100 * v:+.1f}")
            row.append(Cell(text=difference.text, value=difference.value, mark="bad" if wrong else None))
        rows.append(row)
    if all(builds[name].predicted is None for name in named):
        return (Prose(text="Nothing was predicted: these artifacts were built before `assay plan` could."),)
    limits = ", ".join(f"{what} {100 * most:.0f} %" for what, most in LARGEST_ERROR.items())
    worse = f"Farther off: {', '.join(beyond)}." if beyond else "None is farther off."
    note = (
        "Predicted from the checkpoint's configuration and headers before the build; difference = predicted / "
        f"measured - 1. Predictions should be within: {limits}. {worse} Serving memory is that of all processes."
    )
    kinds = ("size", "serving memory", "build memory")
    header = ("artifact", *(f"{what}, {part}" for what in kinds for part in ("predicted", "measured", "difference, %")))
    return Prose(text=note), blocks.table("What was predicted and what was measured", header, rows)


def _amounts(build: Build, quality: Quality, latency: Latency) -> tuple[Amounts, ...]:
    told, served = build.predicted or Predicted(), latency.served
    return (
        ("size", told.bytes, quality.bytes),
        ("serving memory", told.serving_bytes, served.peak_rss_bytes if served else None),
        ("build memory", told.build_bytes, build.peak_rss_bytes),
    )


def cost(selection: Selection) -> tuple[Block, ...]:
    """Give the price of tokens, and every assumption that it rests on."""
    assert selection.cost is not None
    known = selection.cost
    assumptions = [
        f"{known.price_per_hour:g} USD per hour of the whole machine, from {known.source}.",
        f"Tokens as served to {known.concurrency} streams without a pause, {known.hours_per_month:g} hours a month.",
        "price of 10^6 tokens = price per hour / (served tokens/s x 3600) x 10^6; output tokens only.",
    ]
    if known.api_price_per_million_tokens is not None:
        assumptions.append(
            f"break-even = price per hour x hours a month / an API's price of {known.api_price_per_million_tokens:g} "
            "USD for 10^6 output tokens: with more tokens a month than that, one's own machine is cheaper."
        )
    return table.details("Prices in US dollars", selection, table.COST), Items(items=(*assumptions, *known.assumptions))


def checks(named: Sequence[str], quality: Mapping[str, Quality], builds: Mapping[str, Build]) -> tuple[Block, ...]:
    """Say what every artifact had to pass before it was measured, and what was noted."""
    note = (
        "Each artifact was read back through its own runtime before it was measured, and had to pass: no tensor is "
        "empty, NaN, infinite or collapsed to one value; bits per weight are those of the recipe; vocabulary size, "
        "BOS, EOS, added tokens, chat template and the ids of sample texts are the checkpoint's. One that fails is an "
        "error and has no row here. Repeats: the first window, scored again after all others, gave the same figures "
        "to the last bit. The image of the winner is checked by itself: `verification.json`."
    )
    header = ("artifact", "structure", "repeats", "chat template, %", "top-1 agreement, %", "notes")
    rows = []
    for name in named:
        found = quality[name]
        steady = {True: "yes", False: "no", None: "-"}[found.repeats_to_the_bit]
        rows.append(
            (
                *blocks.words(name, "sound"),
                Cell(text=steady, mark="bad" if steady == "no" else None),
                table.plain(found.chat_template_agreement, percent(0)),
                table.figure(found.divergence.top1_agreement if found.divergence else None, percent(1)),
                Cell(text="; ".join(builds[name].notes) or "none"),
            )
        )
    return Prose(text=note), blocks.table("Checks of each artifact", header, rows)


def inputs(checkpoint: Checkpoint, corpus: Corpus, reference: Reference, machine: Machine) -> tuple[Block, ...]:
    """Name everything that the figures come from, by digest."""
    gpus = "".join(
        f", {gpu.name} ({gpu.memory_mib:,} MiB, compute capability {gpu.compute_capability}, driver {gpu.driver})"
        for gpu in machine.gpus
    )
    shape = f"{checkpoint.architecture}, {checkpoint.parameters:,} parameters, {checkpoint.dtype}"
    rows = [
        _input("checkpoint", f"{checkpoint.source}: {shape}", checkpoint.revision, checkpoint.digest),
        *(
            _input(f"text of {use}", f"{split.source}: {_extent(split)}", split.revision, _file(corpus, use))
            for use, split in (("calibration", corpus.calibration), ("evaluation", corpus.evaluation))
        ),
        _input("reference", f"the checkpoint in {reference.dtype}, scored", None, reference.digest),
    ]
    listed = blocks.table("Inputs", ("input", "what it is", "revision", "sha256"), rows)
    return listed, Items(
        items=(
            f"Machine: {machine.cpu}, {machine.cores} logical CPUs, {machine.memory_gib} GiB{gpus}, {machine.system} "
            f"{machine.architecture}, Python {machine.python}.",
        )
    )


def _input(name: str, what: str, revision: str | None, digest: str) -> tuple[Cell, ...]:
    return blocks.words(name, what, revision or "-", f"`{digest}`")


def _extent(split: Split) -> str:
    return f"{split.windows:,} windows, {split.tokens:,} tokens of {split.documents:,} documents"


def _file(corpus: Corpus, use: str) -> str:
    return next((file.sha256 for file in corpus.files if file.path == f"{use}.npz"), "-")


def artifacts(
    named: Sequence[str],
    recipes: Mapping[str, Mapping[str, str | int | float | bool | None]],
    quality: Mapping[str, Quality],
    builds: Mapping[str, Build],
) -> Table:
    """List recipe, tools and digest of each artifact, those that are unavailable among them."""
    rows = [
        blocks.words(name, _pairs(recipes[name]), _pairs(builds[name].tools) or "-", f"`{quality[name].artifact}`")
        for name in named
    ]
    return blocks.table("Artifacts", ("artifact", "recipe", "tools", "sha256"), rows)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def again() -> tuple[Block, ...]:
    """Say how to get the same."""
    return (
        Prose(
            text="To get the same, on this machine or another: check out the revision of the repository that holds "
            "this report, whose `params.yaml` and `dvc.lock` name every input. Artifacts come out to "
            "the bit where their tools repeat themselves; times do not repeat."
        ),
        Code(text="make setup\n.venv/bin/dvc repro selection"),
    )
