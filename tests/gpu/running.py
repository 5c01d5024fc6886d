"""Working through the list: each item in a process of its own, with its own time limit and nothing lost.

Nothing but Python's own library is there before the pack is installed, so nothing else is imported here.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu import listing
from tests.gpu.layout import CUDA, RESULT, ROOT, SITE, TOOLCHAIN, WHEELS
from tests.gpu.listing import LEAST_SHARE, SMALL_FACTOR, Item

TAIL_LINES, TAIL_CHARACTERS = 25, 4000
"""What the JSON keeps of the output of an item that failed."""
POLL_SECONDS = 0.2
MARGIN_SECONDS = 10.0
"""Seconds of the budget that are left for ending what runs and writing."""
FORMAT = 1
"""The version of the JSON. Raise it when a reader of the old one would misread the new one."""
DONE, FAILED, ENDED, NOT_REACHED, NOT_RUN = "done", "failed", "ended at its limit", "not reached", "not run"


def run(
    *, pack: Path, work: Path, out: Path, small: bool, budget_seconds: float, only: Sequence[str] | None, again: bool
) -> int:
    """Install the pack and do the list; return 1 when an item failed. SystemExit where nothing can be begun."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("run: ended by SIGTERM; gpu.json holds what was done"))
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    install(pack, work)
    state = State(work, out, small=small)
    if again:
        state.forget(only or listing.NAMES)
    return Run(state, pack, work, small=small, deadline=began + budget_seconds - MARGIN_SECONDS).all(
        listing.chosen(only)
    )


def install(pack: Path, work: Path) -> None:
    """Unpack the wheels aside, where no package of this machine is touched; what is there of the same pack is kept."""
    wheels = sorted((pack / "1" / WHEELS).glob("*.whl"))
    site = work / SITE
    stamp = site / "pack.txt"
    if not wheels and stamp.exists():
        return  # a later part alone was brought
    if not wheels:
        raise SystemExit(f"run: {pack} holds no wheels; make it by `python -m tests.gpu pack` where there is a network")
    key = "\n".join(f"{wheel.name} {wheel.stat().st_size}" for wheel in wheels)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        return
    shutil.rmtree(site, ignore_errors=True)
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    words += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(site), *map(str, wheels)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"run: the pack cannot be installed:\n{done.stdout[-TAIL_CHARACTERS:]}")
    stamp.write_text(key, encoding="utf-8")


class State:
    """What is known of each item: one JSON file, whole at every moment, in the run's own folder and in `out`."""

    def __init__(self, work: Path, out: Path, *, small: bool) -> None:
        self._paths = (work / RESULT, out / RESULT)
        self.value: dict[str, Any] = {"format": FORMAT, "small": small, "items": {}}
        if self._paths[0].exists():
            earlier = json.loads(self._paths[0].read_text(encoding="utf-8"))
            if earlier["small"] == small:
                self.value = earlier
        self.write()

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        """By name."""
        found: dict[str, dict[str, Any]] = self.value["items"]
        return found

    def done(self, name: str) -> bool:
        """Tell whether an item has its figures."""
        return self.items.get(name, {}).get("state") == DONE

    def forget(self, names: Sequence[str]) -> None:
        """Let these be done again."""
        for name in names:
            self.items.pop(name, None)
        self.write()

    def put(self, name: str, entry: Mapping[str, Any]) -> None:
        """Keep what came of an item."""
        self.items[name] = dict(entry)
        self.write()

    def write(self) -> None:
        """Write both files, each at once or not at all."""
        text = json.dumps(self.value, indent=1)
        for path in self._paths:
            partial = path.with_suffix(".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)


class Started:
    """A process at work on an item."""

    def __init__(self, item: Item, process: "subprocess.Popen[bytes]", limit_seconds: float) -> None:
        self.item, self.process, self.limit_seconds = item, process, limit_seconds
        self.began = time.monotonic()
        self.beside: set[str] = set()
        """Items of the other lane that ran meanwhile."""

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def end(self) -> None:
        """End it, and whatever it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Run:
    """Two lanes of items, from their start to the deadline."""

    def __init__(self, state: State, pack: Path, work: Path, *, small: bool, deadline: float) -> None:
        self._state, self._pack, self._work, self._small, self._deadline = state, pack, work, small, deadline
        self._running: dict[str, Started] = {}

    def all(self, items: Sequence[Item]) -> int:
        """Do the items that are not done; return 1 when one failed."""
        waiting = [item for item in items if not self._state.done(item.name)]
        try:
            while waiting or self._running:
                waiting = self._begin_some(waiting)
                time.sleep(POLL_SECONDS)
                for started in list(self._running.values()):
                    self._look(started)
        finally:
            for started in self._running.values():
                started.end()
        states = [self._state.items[item.name]["state"] for item in items]
        print(f"{states.count(DONE)} of {len(states)} items are done", flush=True)
        return int(any(state in (FAILED, ENDED) for state in states))

    def _begin_some(self, waiting: Sequence[Item]) -> list[Item]:
        """Start what can be started, in order; return what still waits.

        Where something has to run alone and could, the other lane begins nothing new: its own lane goes on while the
        other is busy, and is free for it soon after.
        """
        left, held = list(waiting), False
        for item in waiting:
            if held and item.lane == "cpu":
                continue
            if self._begin(item, left):
                left.remove(item)
            elif item.alone and all(self._state.done(name) for name in item.needs):
                held = True
        return left

    def _begin(self, item: Item, waiting: Sequence[Item]) -> bool:
        """Start an item if its turn has come; true when it need not be looked at again."""
        pending = {one.name for one in waiting} | set(self._running_names())
        lost = [name for name in item.needs if not self._state.done(name)]
        if gone := [name for name in lost if name not in pending]:
            return self._told(item, NOT_RUN, f"it needs {gone[0]}, which is not done")
        left = self._deadline - time.monotonic()
        limit = item.seconds * (SMALL_FACTOR if self._small else 1)
        if left < limit * LEAST_SHARE:
            return self._told(item, NOT_REACHED, f"{max(left, 0):.0f} s were left, and it may take {limit:g}")
        if lost or item.lane in self._running or (item.alone and self._running):
            return False
        if any(started.item.alone for started in self._running.values()):
            return False
        self._running[item.lane] = self._start(item, min(limit, left))
        names = set(self._running_names())
        for started in self._running.values():
            started.beside |= names - {started.item.name}
        return True

    def _running_names(self) -> list[str]:
        return [started.item.name for started in self._running.values()]

    def _start(self, item: Item, limit_seconds: float) -> Started:
        log, found = self.log(item), result(self._work, item.name)
        for path in (log, found):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        words = command(item, self._pack, self._work, small=self._small)
        with log.open("wb") as stream:
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment(self._work), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
        return Started(item, process, limit_seconds)

    def log(self, item: Item) -> Path:
        """Return where an item's output goes."""
        return self._work / "logs" / f"{item.name.replace('/', '-')}.txt"

    def _look(self, started: Started) -> None:
        """Take note of an item that has ended, or whose time is over."""
        code = started.process.poll()
        if code is None and started.seconds < started.limit_seconds:
            return
        started.end()
        del self._running[started.item.lane]
        state = ENDED if code is None else DONE if code == 0 else FAILED
        self._told(started.item, state, "" if state == DONE else self._tail(started.item), started)

    def _tail(self, item: Item) -> str:
        lines = self.log(item).read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(lines)[-TAIL_CHARACTERS:]

    def _told(self, item: Item, state: str, said: str, started: Started | None = None) -> bool:
        """Keep what came of an item, and print a line for each of its figures."""
        found = result(self._work, item.name)
        told = json.loads(found.read_text(encoding="utf-8")) if started and found.exists() else {}
        figures = told.get("figures", [])
        entry: dict[str, Any] = {"state": state, "said": said, "figures": figures}
        self._state.value.setdefault("about", {}).update(told.get("about", {}))
        if started:
            entry |= {"seconds": started.seconds, "limit_seconds": started.limit_seconds}
            entry |= {"beside": sorted(started.beside)}
        self._state.put(item.name, entry)
        took = f" in {started.seconds:.1f} s" if started else ""
        print(f"{item.name}: {state}{took}", flush=True)
        for figure in figures:
            print(f"  {figure['what']}: {figure['value']:.6g} {figure['unit']}", flush=True)
        if said:
            print("\n".join(f"  | {line}" for line in said.splitlines()[-5:]), flush=True)
        return True


def command(item: Item, pack: Path, work: Path, *, small: bool) -> list[str]:
    """Return what does an item in a process of its own."""
    words = [sys.executable, "-m", "tests.gpu", "item", item.name, "--pack", str(pack), "--work", str(work)]
    return [*words, *(["--small"] if small else [])]


def result(work: Path, name: str) -> Path:
    """Return where an item puts its figures."""
    return work / "results" / f"{name.replace('/', '-')}.json"


def environment(work: Path) -> dict[str, str]:
    """Return what an item's process needs to find our code, the pack, the interpreter's programs and llama.cpp."""
    paths = [str(ROOT), str(work / SITE), os.environ.get("PYTHONPATH", "")]
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # the pack was installed without: each item would compile it again
    }
    root, libraries = work / TOOLCHAIN / "root", work / CUDA / "lib"
    if root.exists():
        found["ASSAY_LLAMA_CPP"] = str(root)
    if libraries.exists():
        found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(libraries), found.get("LD_LIBRARY_PATH"))))
    return found
