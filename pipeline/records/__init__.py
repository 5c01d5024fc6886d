"""What the stages write: frozen records, JSON in and out, unknown keys refused.

A record that is part of an artifact holds identity only: inputs by digest, the recipe, tool versions, files. Times,
hosts, peak memory and paths are provenance and go to `measurements/`.
"""

from pipeline.records.artifacts import Artifact, Build, Predicted
from pipeline.records.base import FILE, Failure, File, Record, canonical_json
from pipeline.records.images import Check, Engine, Image, Layer, Package, Referrer, Release, Verification
from pipeline.records.inputs import Builders, Code, Gpu, Hardware, Machine, Revision, Source, Sources
from pipeline.records.measurements import (
    EngineName,
    Latency,
    Placement,
    Quality,
    Served,
    Spread,
    TaskAnswers,
    Tasks,
    Timing,
)
from pipeline.records.references import (
    Chat,
    Checkpoint,
    Corpus,
    Message,
    Reference,
    ReferenceAnswers,
    Sample,
    Split,
    Vocabulary,
)
from pipeline.records.selections import Cost, Gate, Selection, Standing

__all__ = [
    "FILE",
    "Artifact",
    "Build",
    "Builders",
    "Chat",
    "Check",
    "Checkpoint",
    "Code",
    "Corpus",
    "Cost",
    "Engine",
    "EngineName",
    "Failure",
    "File",
    "Gate",
    "Gpu",
    "Hardware",
    "Image",
    "Latency",
    "Layer",
    "Machine",
    "Message",
    "Package",
    "Placement",
    "Predicted",
    "Quality",
    "Record",
    "Reference",
    "ReferenceAnswers",
    "Referrer",
    "Release",
    "Revision",
    "Sample",
    "Selection",
    "Served",
    "Source",
    "Sources",
    "Split",
    "Spread",
    "Standing",
    "TaskAnswers",
    "Tasks",
    "Timing",
    "Verification",
    "Vocabulary",
    "canonical_json",
]
