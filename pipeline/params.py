"""params.yaml, parsed once into frozen values; unknown keys are refused with a suggestion."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, model_validator

from pipeline import compute, metrics
from pipeline.backends import AnyRecipe
from pipeline.compute import Compute, Device
from pipeline.errors import ParamsError
from pipeline.records import Placement, Record

PATH = Path("params.yaml")


def _known_metric(name: str) -> str:
    if metrics.find(name) is not None:
        return name
    known = [*metrics.METRICS, *(f"{kind}.TASK" for kind in metrics.TASK_METRICS)]
    near = difflib.get_close_matches(name, metrics.METRICS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"{name!r} is no metric; {hint}")


Metric = Annotated[str, AfterValidator(_known_metric)]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(
            f"{name!r} must be lower-case letters, digits, - and _: it becomes a folder and a stage's name"
        )
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


def _not_blank(source: str) -> str:
    if not source.strip():
        raise ValueError("is empty, which would be the folder that this is run in; name the source")
    return source


Source = Annotated[str, AfterValidator(_not_blank)]


class CheckpointParams(Record):
    """Where the model comes from."""

    source: Source
    """hf://org/name, or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; the record holds the commit. None is the default branch."""


class TextParams(Record):
    """Where text comes from, and how much of it is used."""

    source: Source
    """A file, a folder, hf://datasets/org/name[@revision]/path, or stdlib://training and stdlib://evaluation."""
    revision: str | None = None
    windows: int = Field(ge=1)
    """At most this many windows, spread evenly over the documents."""


class CorpusParams(Record):
    """What artifacts are calibrated and evaluated on."""

    window_tokens: int = Field(ge=16)
    max_overlap: float = Field(ge=0, le=1)
    """Largest share of the evaluation windows' runs of 13 words that may also occur in calibration windows."""
    calibration: TextParams
    evaluation: TextParams


class LatencyParams(Record):
    """How an engine is timed in process: one stream, greedy, fixed lengths."""

    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    warmup: int = Field(ge=1)
    repeats: int = Field(ge=5)


class SloParams(Record):
    """What a served request must keep to count as good."""

    ttft_seconds: float = Field(gt=0)
    tpot_seconds: float = Field(gt=0)


class ServingParams(Record):
    """How an engine is timed behind the gateway: a closed loop of streams, greedy, fixed lengths."""

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Numbers of streams, each measured by itself."""
    requests: int = Field(ge=6)
    """Requests of each stream. A level's quantiles need so many of all its streams: p50 6, p90 36, p95 72, p99 368."""
    warmup: int = Field(ge=1)
    """Requests of each stream before them that are not counted."""
    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    slo: SloParams
    placement: Placement = Placement()
    """On GPUs: serving.placement.tensor_parallel and serving.placement.gpu_memory_fraction."""


class GreedyParams(Record):
    """Greedy continuations that are compared with the reference's, from beginnings of evaluation windows."""

    prompts: int = Field(ge=2)
    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)


class TasksParams(Record):
    """What lm-evaluation-harness asks every artifact, and the checkpoint itself."""

    names: tuple[str, ...] = ()
    """`cloze` is made of the evaluation text and needs no network. Any other name is lm-eval's: a task, tag or group,
    whose dataset comes from the Hub. None at all leaves the tasks out."""
    limit: int | None = Field(default=None, ge=1)
    """The first documents of each task; None is all of them."""


class Objective(Record):
    """What the winner is best at."""

    metric: Metric
    direction: Literal["minimize", "maximize"]


class Bound(Record):
    """A limit on one metric, inclusive."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _some_limit(self) -> "Bound":
        if self.at_most is None and self.at_least is None:
            raise ValueError("needs at_most, at_least or both")
        return self


class SelectionParams(Record):
    """Which artifact wins: the best by the objective of those that pass every constraint."""

    objective: Objective
    constraints: dict[Metric, Bound] = Field(default_factory=dict)
    concurrency: int
    """Streams at which the served metrics count: one of serving.concurrency."""


class CostParams(Record):
    """What a token's price is computed from."""

    price_per_hour: float | None = Field(default=None, gt=0)
    """In US dollars, of the whole machine; None is that of its GPUs in pipeline/hardware.toml, if they are there."""
    api_price_per_million_tokens: float | None = Field(default=None, gt=0)
    """What an API asks for output tokens: gives the volume from which one's own machine is cheaper."""
    hours_per_month: float = Field(default=730, gt=0, le=744)
    """That the machine is paid for."""


class ImageParams(Record):
    """The image that serves the winner."""

    name: str = Field(pattern=r"^[a-z0-9]+([._/-][a-z0-9]+)*$")
    """The name of the repository in a registry."""
    version: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """The commit is put behind it."""
    base: str | None = None
    """A base image by REPOSITORY[:TAG][@DIGEST]; `debootstrap` makes one of Debian packages; None is that of
    containers/images.toml, and Debian packages while it has no digest. ASSAY_BASE in the environment wins."""
    source: str | None = None
    """URL of the code, for the annotation."""
    licenses: str | None = None
    """SPDX expression of everything in the image, the checkpoint's licence first of all."""


class Params(Record):
    """All of params.yaml."""

    checkpoint: CheckpointParams
    corpus: CorpusParams
    artifacts: dict[Name, AnyRecipe] = Field(min_length=1)
    greedy: GreedyParams
    latency: LatencyParams
    serving: ServingParams
    tasks: TasksParams
    device: Device | None = None
    """What models run on; None is GPUs where there are any."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of every runtime; None is every core this process may use."""
    selection: SelectionParams
    image: ImageParams
    cost: CostParams = CostParams()
    force: bool = False
    """Build even what is predicted not to fit this machine's memory or disk; ASSAY_FORCE=1 says the same."""

    @model_validator(mode="after")
    def _sources(self) -> "Params":
        for name, recipe in self.artifacts.items():
            folder, _, source = recipe.source.rpartition("/")
            if recipe.source == "checkpoint":
                continue
            if folder != "artifacts" or source not in self.artifacts:
                known = ", ".join(f"artifacts/{one}" for one in self.artifacts if one != name)
                raise ValueError(f"artifacts.{name}.from: {recipe.source} is neither checkpoint nor one of {known}")
            if self.artifacts[source].source != "checkpoint":
                raise ValueError(f"artifacts.{name}.from: {recipe.source} is itself built from another artifact")
        return self

    @model_validator(mode="after")
    def _measured(self) -> "Params":
        levels, wanted = self.serving.concurrency, self.selection.concurrency
        if wanted not in levels:
            raise ValueError(f"selection.concurrency: {wanted} is none of serving.concurrency: {list(levels)}")
        return self

    @model_validator(mode="after")
    def _compared(self) -> "Params":
        chosen_by = {self.selection.objective.metric, *self.selection.constraints}
        if "break_even_tokens_per_month" in chosen_by and self.cost.api_price_per_million_tokens is None:
            raise ValueError("selection: break_even_tokens_per_month needs cost.api_price_per_million_tokens")
        return self

    def compute(self) -> Compute:
        """What models run on, on this machine. RequirementError where the device that was asked for is not there."""
        return compute.here(self.threads, self.device)


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML's own loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None  # no other key is one of ours
            if name is not None and name in lines and key.tag != "tag:yaml.org,2002:merge":
                told = f"{name} is there twice, in lines {lines[name]} and {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(problem=told)
            lines[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def load(path: Path = PATH) -> Params:
    """Read and check params.yaml; ParamsError as in `check`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); is this a folder of `assay init`?") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not YAML: {error}") from error
    return check(text, str(path))


def check(text: str, where: str) -> Params:
    """Parse the text of a params.yaml. ParamsError names each bad key, what was found, and the nearest known key."""
    try:
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{where}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ParamsError(f"{where}: expected a mapping, found {type(raw).__name__}")
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise ParamsError(f"{where}: {error.error_count()} problem(s)\n{problems}") from error
    for name, recipe in raw["artifacts"].items():
        if "from" not in recipe:  # dvc.yaml reads it of each one, so a default would come too late
            raise ParamsError(f"{where}: artifacts.{name} does not say what it is built from; add `from: checkpoint`")
    return params


def _explain(problem: Mapping[str, Any]) -> str:
    if not problem["loc"]:  # of the whole file, which is not worth printing
        return str(problem["msg"])
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{where}: is missing"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']} (found {problem['input']!r})"
    near = difflib.get_close_matches(str(problem["loc"][-1]), sorted(_known_keys()), n=1)
    return f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else "")


def _known_keys() -> set[str]:
    """Every key that some part of params.yaml knows."""
    models: list[type[BaseModel]] = [Params, CheckpointParams, TextParams, CorpusParams, GreedyParams, LatencyParams]
    models += [ServingParams, SloParams, TasksParams, SelectionParams, ImageParams, CostParams, Objective, Bound]
    models += [Placement, *get_args(get_args(AnyRecipe)[0])]
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


RECIPE: TypeAdapter[AnyRecipe] = TypeAdapter(AnyRecipe)
"""Reads the recipe back from an artifact's record."""
