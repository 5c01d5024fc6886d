"""Where each noun's output lies, relative to the project's folder; dvc.yaml names the same paths."""

import os
from pathlib import Path

MACHINE = Path("inputs/machine.json")
CHECKPOINT_SOURCE = Path("inputs/checkpoint.json")
TEXT_SOURCES = Path("inputs/texts.json")
REVISION = Path("inputs/revision.json")
BUILDERS = Path("inputs/builders.json")
HARDWARE = Path("inputs/hardware")
CODE = Path("inputs/code")

CHECKPOINT = Path("checkpoint")
CORPUS = Path("corpus")
REFERENCE = Path("reference")

ANSWERS = Path("measurements/answers.json")
DATASETS = Path(".assay/cache/datasets")
"""Where `datasets` keeps tasks' documents in its own form; nothing reads it but the tasks stages."""
TASKS = Path("evals/tasks")
"""A project's own tasks of lm-evaluation-harness, a YAML file each; it need not be there."""
CLOZE = CORPUS / "cloze.jsonl"

SELECTION = Path("selection.json")
METRICS = Path("metrics.json")
REPORT = Path("report/report.md")
PAGE = Path("report/index.html")
PLOTS = Path("report/plots")
"""What `dvc plots` draws."""

ENGINE = Path("engine")
IMAGE = Path("image")
VERIFICATION = Path("verification.json")
RELEASE = Path("release.json")


def hardware(name: str) -> Path:
    """Return the record of what this machine lacks for an artifact."""
    return HARDWARE / f"{name}.json"


def code(name: str) -> Path:
    """Return the record of the code and the tools that shape what a stage writes."""
    return CODE / f"{name}.json"


def artifact(name: str) -> Path:
    """Return the folder of an artifact."""
    return Path("artifacts") / name


def build(name: str) -> Path:
    """Return the provenance of an artifact's build."""
    return Path("measurements/build") / f"{name}.json"


def quality(name: str) -> Path:
    """Return the quality record of an artifact."""
    return Path("measurements/quality") / f"{name}.json"


def tokens(name: str) -> Path:
    """Return the per-token figures behind an artifact's quality record."""
    return Path("measurements/quality") / f"{name}.npz"


def latency(name: str) -> Path:
    """Return the latency record of an artifact."""
    return Path("measurements/latency") / f"{name}.json"


def tasks(name: str) -> Path:
    """Return the tasks record of an artifact."""
    return Path("measurements/tasks") / f"{name}.json"


def evidence(name: str) -> dict[str, Path]:
    """Return the records that speak for an artifact, those that are there, by the names that an image gives them."""
    records = {
        "checkpoint": CHECKPOINT / "assay.json",
        "corpus": CORPUS / "assay.json",
        "reference": REFERENCE / "assay.json",
        "quality": quality(name),
        "latency": latency(name),
        "tasks": tasks(name),
        "selection": SELECTION,
    }
    return {noun: path for noun, path in records.items() if path.exists()}


def user_cache() -> Path:
    """Return `${XDG_CACHE_HOME:-~/.cache}/assay`, which all projects of a user share."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "assay"
