"""The list: what is done, in the order of its worth, with the time that each may take on one H100."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Lane = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Item:
    """One piece of work, done in a process of its own."""

    name: str
    """SPACE/ACTION; a space is a folder with one checkpoint and what comes of it."""
    seconds: float
    """After which it is ended."""
    needs: tuple[str, ...] = ()
    """Items that must have been done."""
    lane: Lane = "gpu"
    """Items of the other lane run beside it: compiling and the CPU's own figures take minutes in which no GPU works."""
    alone: bool = False
    """Nothing runs beside it, because the CPU bears on what it measures. It is of the lane "gpu"."""


DEVICE, LLAMA_CPP = "machine/device", "machine/llama.cpp"

LIST = (
    Item(DEVICE, 60),
    Item(LLAMA_CPP, 480, lane="cpu"),
    Item("random/checkpoint", 90),
    Item("random/reference", 90, ("random/checkpoint",)),
    Item("random/gptq", 180, ("random/reference",)),
    Item("random/awq", 180, ("random/reference",)),
    Item("random/cpu", 150, ("random/checkpoint",), lane="cpu"),
    Item("random/floor", 60, ("random/cpu",)),
    Item("random/gguf", 120, ("random/reference", LLAMA_CPP)),
    Item("random/llama.cpp served", 120, ("random/gguf",), alone=True),
    Item("random/transformers served", 120, ("random/floor",), alone=True),
    Item("smollm2/checkpoint", 60),
    Item("smollm2/reference", 60, ("smollm2/checkpoint",)),
    Item("smollm2/gptq", 120, ("smollm2/reference",)),
    Item("smollm2/awq", 120, ("smollm2/reference",)),
    Item("smollm2/cpu", 120, ("smollm2/checkpoint",), lane="cpu"),
    Item("smollm2/floor", 60, ("smollm2/cpu",)),
    Item("smollm2/gguf", 90, ("smollm2/reference", LLAMA_CPP)),
    Item("seven/checkpoint", 150),
    Item("seven/reference", 120, ("seven/checkpoint",)),
    Item("seven/gptq", 900, ("seven/reference",)),
    Item("seven/gguf", 300, ("seven/reference", LLAMA_CPP)),
)

NAMES = tuple(item.name for item in LIST)
"""An item's needs stand before it."""

SMALL_FACTOR = 5.0
"""How many times as long a small item may take on a CPU."""

LEAST_SHARE = 0.25
"""An item is not begun when less than this share of its time is left: it would be ended before it told anything."""


def chosen(names: Sequence[str] | None) -> tuple[Item, ...]:
    """Return the items of these names and those that they need, in order; all without names."""
    if names is None:
        return LIST
    if unknown := [name for name in names if name not in NAMES]:
        raise SystemExit(f"--only {unknown[0]}: no such item; known: {', '.join(NAMES)}")
    wanted = {need for name in names for need in _with_needs(name)}
    return tuple(item for item in LIST if item.name in wanted)


def _with_needs(name: str) -> Iterator[str]:
    yield name
    for need in next(item for item in LIST if item.name == name).needs:
        yield from _with_needs(need)
