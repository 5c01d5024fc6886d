"""`assay overview`: one page over many projects, each at its workspace or at a revision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from pipeline import digests, metrics, outputs, paths
from pipeline.comparison import compare, sides
from pipeline.comparison.compare import Comparison
from pipeline.comparison.sides import Side
from pipeline.errors import AssayError, ParamsError, StorageError
from pipeline.records import FILE, Checkpoint, Image, Machine, Record, Release, Standing, Verification
from pipeline.report import blocks, disturbance, markdown, page, table
from pipeline.report.blocks import Cell, Items, Section, Table

METRICS = (
    "bytes", "perplexity_ratio", "kld_mean", "served_output_tokens_per_second", "served_ttft_seconds_p50",
    "price_per_million_tokens",
)  # fmt: skip
"""What is told of each winner."""

MOST_CHANGES = 5
"""Changes that are named of each project; `assay compare` has them all."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One run of one project."""

    name: str
    side: Side
    checkpoint: Checkpoint | None
    verification: Verification | None
    image: Image | None
    released: Release | None
    since: Comparison | str | None
    """Against the revision that was released; why not, where that cannot be read; None without a release or winner."""
    unmeasured: tuple[str, ...]
    """Sentences about artifacts without figures."""
    busy: str | None
    """Which speeds are a busy machine's."""

    @property
    def winner(self) -> Standing | None:
        """The winner's figures."""
        selection = self.side.selection
        return next((one for one in selection.ranking if one.name == selection.winner), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All that were asked for."""

    projects: tuple[Project, ...]
    unread: dict[str, str] = field(default_factory=dict)
    """Why others could not be read, by what was asked for."""


def overview(places: Sequence[str]) -> Overview:
    """Read projects, each FOLDER or FOLDER@REVISION; what cannot be read is told and keeps none of the others out."""
    projects, unread = [], {}
    for place in dict.fromkeys(one.rstrip("/") or one for one in places):
        try:
            projects.append(_project(place))
        except (AssayError, OSError) as error:
            unread[place] = str(error)
    return Overview(projects=tuple(projects), unread=unread)


def _project(place: str) -> Project:
    folder, _, revision = (place, "", "") if Path(place).is_dir() else place.rpartition("@")
    if not folder or not Path(folder).is_dir():
        raise ParamsError("is no folder; name a project, as FOLDER or FOLDER@REVISION")
    side = sides.revision(Path(folder), revision) if revision else sides.workspace(Path(folder))
    released = _record(side, Release, paths.RELEASE)
    winner = side.selection.winner
    return Project(
        name=Path(place).resolve().name if place in (".", "..") else place,
        side=side,
        checkpoint=_record(side, Checkpoint, paths.CHECKPOINT / FILE),
        verification=_record(side, Verification, paths.VERIFICATION),
        image=_record(side, Image, paths.IMAGE / FILE),
        released=released,
        since=None if released is None or winner is None else _since(side, Path(folder), released.tag),
        unmeasured=tuple(_unmeasured(side)),
        busy=disturbance.warning(side.selection),
    )


def _record(side: Side, kind: type[R], path: Path) -> R | None:
    """Read a record that need not be there."""
    try:
        return sides.parse(kind, side.read(path), path, side.title)
    except FileNotFoundError:
        return None


def _since(side: Side, folder: Path, tag: str) -> Comparison | str:
    """Compare with what was released, whose commit Git knows as v1.2.3 or 1.2.3; say why where that cannot be done."""
    for revision in (f"v{tag}", tag):
        try:
            return compare.compare(sides.revision(folder, revision), side)
        except ParamsError:  # no such revision
            continue
        except AssayError as error:
            return str(error)
    return f"Git has neither a tag v{tag} nor {tag}, by which the commit that was released would be found"


def _unmeasured(side: Side) -> list[str]:
    """Name what has no figures: what failed or is impossible here, and what params.yaml asks for since the last run."""
    told = [f"`{one.name}`: {one.unavailable}" for one in side.selection.ranking if one.unavailable]
    try:
        wanted = yaml.safe_load(side.read(Path("params.yaml")))
    except (FileNotFoundError, yaml.YAMLError):
        return told
    ranked = {one.name for one in side.selection.ranking}
    named = wanted.get("artifacts") if isinstance(wanted, dict) else None
    new = [name for name in named if name not in ranked] if isinstance(named, dict) else []
    return told + [f"`{name}`: is in params.yaml, and was not part of the last run" for name in new]


def require(found: Overview) -> None:
    """Raise StorageError where nothing at all could be read."""
    if not found.projects:
        raise StorageError("none of these projects could be read; the reasons stand above")


def text(found: Overview) -> str:
    """Return an overview as Markdown."""
    return markdown.document(_title(found), _sentence(found), _sections(found))


def write_page(found: Overview, path: Path) -> None:
    """Write an overview as one file for a browser, whose table can be sorted."""
    outputs.replace(path, page.tables(_title(found), _sentence(found), _sections(found)))


def _title(found: Overview) -> str:
    count = len(found.projects)
    return f"{count} project{'' if count == 1 else 's'}"


def _sentence(found: Overview) -> str:
    winners = sum(one.winner is not None for one in found.projects)
    proved = sum(one.verification is not None and one.verification.green for one in found.projects)
    return (
        f"**{winners} of {len(found.projects)} have a winner**; {proved} have an image that serves what was measured."
    )


def _sections(found: Overview) -> tuple[Section, ...]:
    sections = []
    if found.projects:
        sections.append(Section(title="Winners", blocks=(_winners(found.projects),)))
    for title, listed in (
        ("Since the last release", [line for one in found.projects for line in _changed(one)]),
        ("Not measured", [f"**{one.name}**: {line}" for one in found.projects for line in one.unmeasured]),
        ("Measured on a busy machine", [f"**{one.name}**: {one.busy}" for one in found.projects if one.busy]),
        ("Not read", [f"**{place}**: {reason}" for place, reason in found.unread.items()]),
    ):
        if listed:
            sections.append(Section(title=title, blocks=(Items(items=tuple(listed)),)))
    return tuple(sections)


def _winners(projects: Sequence[Project]) -> Table:
    every = [metrics.named(name) for name in METRICS]
    measured = [one.winner.metrics for one in projects if one.winner is not None]
    shown = [metric for metric in every if any(found.get(metric.name) is not None for found in measured)]
    header = (
        *("project", "checkpoint", "winner", *(metric.title for metric in shown)),
        *("pass", "machine", "image", "released", "since the release"),
    )
    return blocks.table("The winner of each project", header, [_row(one, shown) for one in projects])


def _row(one: Project, shown: Sequence[metrics.Metric]) -> list[Cell]:
    winner, ranking = one.winner, one.side.selection.ranking
    passing = sum(not standing.missed and not standing.unavailable for standing in ranking)
    latency = None if winner is None else one.side.latency(winner.name)
    return [
        Cell(text=one.name),
        Cell(text="-" if one.checkpoint is None else one.checkpoint.source),
        Cell(text="none" if winner is None else winner.name, mark="bad" if winner is None else None),
        *(Cell(text="-") if winner is None else table.cell(metric, winner) for metric in shown),
        Cell(text=f"{passing} of {len(ranking)}", value=passing / len(ranking) if ranking else None),
        Cell(text="-" if latency is None or latency.machine is None else _machine(one.side, latency.machine)),
        _proved(one.verification),
        Cell(text="-" if one.released is None else one.released.tag),
        _counted(one),
    ]


def _machine(side: Side, digest: str) -> str:
    """Name the machine that measured; by the digest of its record alone, where that record is another one's by now."""
    known = _record(side, Machine, paths.MACHINE)
    if known is None or digests.of_value(known.model_dump()) != digest:
        return f"`{digest[:8]}`"
    gpus = ", ".join(f"{gpu.name}" for gpu in known.gpus)
    return f"{known.cpu}, {known.cores} cores" + (f", {gpus}" if gpus else "")


def _proved(verification: Verification | None) -> Cell:
    if verification is None:
        return Cell(text="-")
    if verification.unavailable is not None:
        return Cell(text="none", mark="unsure")
    return Cell(text="verified", mark="good") if verification.green else Cell(text="failed", mark="bad")


def _counted(one: Project) -> Cell:
    """Say in a word or two what changed since the release."""
    if one.released is None:
        return Cell(text="-")
    if one.image is not None and one.image.digest == one.released.digest:
        return Cell(text="this image")
    if not isinstance(one.since, Comparison):
        return Cell(text="another image", mark="unsure")
    worse, better = one.since.count("worse"), one.since.count("better")
    return Cell(text=f"{better} better, {worse} worse", mark="bad" if worse else "good" if better else None)


def _changed(one: Project) -> list[str]:
    """Tell what changed since the release, the worst first."""
    if one.since is None:
        return []
    if isinstance(one.since, str):
        return [f"**{one.name}**: cannot be compared with its release: {one.since}"]
    told = []
    if one.since.old_winner != one.since.new_winner:
        told.append(f"**{one.name}**: the winner was {one.since.old_winner}, and is {one.since.new_winner}")
    judged = [change for change in one.since.changes if change.verdict in ("worse", "better")]
    judged.sort(key=lambda change: change.verdict, reverse=True)
    told += [
        f"**{one.name}**: `{change.metric.name}` of {change.artifact} is {change.verdict}: "
        f"{table.estimate(change.old, change.metric.show)}, now {table.estimate(change.new, change.metric.show)}"
        for change in judged[:MOST_CHANGES]
    ]
    if len(judged) > MOST_CHANGES:
        told.append(f"**{one.name}**: {len(judged) - MOST_CHANGES} more; `assay compare` tells them")
    return told
