"""What each item of the list does, in a process of its own; figures are kept as soon as they are there."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.gpu import running


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    what: str
    value: float
    unit: str
    gpu_bytes: int | None = None
    """The most that was taken on all GPUs meanwhile."""
    note: str = ""


@dataclass
class Work:
    """What an item is given, and where it puts its figures."""

    name: str
    pack: Path
    folder: Path
    small: bool
    figures: list[Figure] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, value: float, unit: str, *, gpu_bytes: int | None = None, note: str = "") -> None:
        """Keep a figure; what is kept stays when the item ends badly later."""
        self.figures.append(Figure(what, value, unit, gpu_bytes, note))
        self.write()

    def write(self) -> None:
        """Write all figures, at once or not at all."""
        path = running.result(self.folder, self.name)
        partial = path.with_suffix(".partial")
        value = {"about": self.about, "figures": [asdict(figure) for figure in self.figures]}
        partial.write_text(json.dumps(value), encoding="utf-8")
        partial.replace(path)


Action = Callable[[Work], None]


def run(name: str, *, pack: Path, work: Path, small: bool) -> None:
    """Do an item in this process."""
    space, action = name.split("/")
    task = Work(name, pack, work, small)
    running.result(work, name).parent.mkdir(parents=True, exist_ok=True)
    if space == "machine":
        from tests.gpu import device, toolchain

        {"device": device.measure, "llama.cpp": toolchain.build}[action](task)
        return
    from tests.gpu import measuring, serving, spaces

    actions: dict[str, Callable[[Work, spaces.Space], None]] = {
        "checkpoint": spaces.prepare,
        "reference": measuring.reference,
        "cpu": measuring.cpu,
        "floor": measuring.floor,
        "gptq": measuring.gptq,
        "awq": measuring.awq,
        "gguf": measuring.gguf,
        "llama.cpp served": serving.llama_cpp,
        "transformers served": serving.transformers,
    }
    wanted = spaces.SPACES[space]
    folder = work / space
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    actions[action](task, wanted)
