"""Why a stage will run: which of its inputs, modules, tools or settings are not those of its last run."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import fingerprints, params, paths
from pipeline.errors import ParamsError
from pipeline.records import Code

NEW = "it has not run yet"


def why(target: str | None) -> dict[str, list[str]]:
    """Return the reasons of each stage that `dvc repro TARGET` would run by itself, in the order of the flow.

    Stages that run because what they need is made anew are not told apart: whether they do depends on what comes out.
    ParamsError for a target that dvc.yaml does not have.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    now = {code.name: code for code in fingerprints.records({one.backend for one in params.load().artifacts.values()})}
    try:
        with contextlib.closing(Repo()) as repo:
            stages = repo.stage.collect(target, with_deps=True) if target else list(repo.index.stages)
            status = repo.status(targets=[target] if target else None, with_deps=target is not None)
            found = {one.addressing: list(_reasons(one, repo, now, status.get(one.addressing, []))) for one in stages}
    except DvcException as error:
        raise ParamsError(f"dvc: {error}; `dvc stage list --name-only` lists the stages") from error
    return {name: reasons for name, reasons in found.items() if reasons and name != "inputs"}


def text(target: str | None) -> list[str]:
    """Return the reasons as lines to be printed, those of a stage indented below its name."""
    found = why(target)
    new = [stage for stage, reasons in found.items() if reasons == [NEW]]
    found = {stage: reasons for stage, reasons in found.items() if reasons != [NEW]}
    lines = [f"not run yet: {', '.join(new)}"] if new else []
    lines += [line for stage, reasons in found.items() for line in (f"{stage}:", *(f"  {one}" for one in reasons))]
    return lines or ["nothing will run: inputs, code, tools and settings are those of the last run"]


def _reasons(stage: Any, repo: Any, now: Mapping[str, Code], changes: list[Any]) -> Iterator[str]:
    """Tell what is not as it was in a stage's last run."""
    known = [bool(dependency.hash_info) for dependency in stage.deps]
    if known and not all(known):
        yield "dvc.yaml gave it other inputs in its last run" if any(known) else NEW
        return
    yield from _code(stage, repo, now)
    yield from _others(changes)


def _code(stage: Any, repo: Any, now: Mapping[str, Code]) -> Iterator[str]:
    """Tell what of a stage's code and tools is not as it was in its last run."""
    for dependency in stage.deps:
        path = Path(str(dependency))
        if path.parent != paths.CODE:
            continue
        kept = Path(repo.cache.local.oid_to_path(dependency.hash_info.value))
        if kept.exists():
            yield from differences(Code.load(kept), now[path.stem])
        elif path.exists() and Code.load(path) != now[path.stem]:
            yield "its code or its tools changed; what they were is not in the cache"


def differences(old: Code, new: Code) -> Iterator[str]:
    """Name the modules, files and tools that differ."""
    for kind, before, after in (
        ("module", old.modules, new.modules), ("file", old.data, new.data), ("tool", old.tools, new.tools),
    ):  # fmt: skip
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) == after.get(name):
                continue
            if kind == "tool":
                yield f"{name} was {before.get(name, 'not used')} and is {after.get(name, 'not used')}"
            elif name not in before or name not in after:
                yield f"{kind} {name} was {'removed' if name in before else 'added'}"
            else:
                yield f"{kind} {name} changed"


def _others(changes: list[Any]) -> Iterator[str]:
    """Tell what DVC finds changed beside code: inputs, settings, outputs, the command."""
    for change in changes:
        if isinstance(change, str):
            yield change
            continue
        for what, found in change.items():
            for path, how in found.items():
                if Path(path).parent == paths.CODE:
                    continue
                if isinstance(how, dict):
                    yield from (f"{key} in {path} is {told}" for key, told in how.items())
                else:
                    yield f"{'output' if 'outs' in what else 'input'} {path} is {how}"
