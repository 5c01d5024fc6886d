"""`assay init` and `assay upgrade`: the folder of a model, and bringing it to the version that is installed.

A project is params.yaml and dvc.yaml in a Git and DVC repository; the tool is installed beside it. Assay's own
repository is such a folder, and its files are the ones that others get.
"""

import os
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from pipeline import interpreter, outputs, params, processes
from pipeline.commands import params_file
from pipeline.errors import BuildError, ParamsError, RequirementError

DISTRIBUTION = "assay-pipeline"
DVC_YAML, REQUIREMENTS, CONSTRAINTS, IGNORED = "dvc.yaml", "requirements.txt", "constraints.txt", ".gitignore"
DVC_CONFIG, README = ".dvc/config", "README.md"
PINNED = re.compile(rf"^({DISTRIBUTION}(?:\[[^\]]*\])?==)\S+", re.MULTILINE)
"""A version of Assay in requirements.txt; what else a project needs stays, and so does Assay from another place."""

CI = (
    *("ci/comment.py", "ci/compare.sh", "ci/release.sh", "ci/remote.sh", "ci/setup.sh", ".gitlab-ci.yml"),
    *(".github/workflows/compare.yml", ".github/workflows/release.yml"),
)
"""What a host of Git repositories runs; it looks for these at the repository's root alone."""

WRITTEN = "# What the pipeline writes"
"""What follows this in Assay's own .gitignore is ignored in every project."""


def init(folder: Path, checkpoint: str, revision: str | None) -> list[str]:
    """Make a project for a checkpoint; return what to type next.

    `checkpoint` is `hf://org/name` or a folder. Nothing is fetched, built or measured. Raises ParamsError where the
    folder has a project already, or the checkpoint is none of these; RequirementError without Git.
    """
    source = _source(folder, checkpoint)
    files = {
        str(params.PATH): _params(folder, source, revision),
        **_versioned(),
        IGNORED: f"/.venv/\n/.assay/\n\n{WRITTEN}{_shared(IGNORED).partition(WRITTEN)[2]}",
        README: _readme(folder, source),
    }
    there = [name for name in (*files, ".dvc") if (folder / name).exists() and name not in (IGNORED, README)]
    if there:
        raise ParamsError(f"{folder}: has {', '.join(there)} already; `assay upgrade` brings a project to this version")
    folder.mkdir(parents=True, exist_ok=True)
    root = _repository(folder)
    if root == folder.resolve():
        files |= {name: _shared(name) for name in CI}
    for name, text in files.items():
        if not (folder / name).exists():
            _write(folder, name, text)
    command = [sys.executable, "-m", "dvc", "init", "--quiet", *([] if root == folder.resolve() else ["--subdir"])]
    processes.run(command, what="dvc init", cwd=folder)
    outputs.replace(folder / DVC_CONFIG, _shared(DVC_CONFIG))
    outputs.replace(folder / ".dvcignore", _shared(".dvcignore"))
    return [f"cd {folder}", "assay plan", "dvc repro"]


def upgrade() -> list[str]:
    """Bring this folder's dvc.yaml, pins and CI files to the installed version; return the files that changed.

    params.yaml stays as it is, and is checked first. What Git could not give back is not overwritten: ParamsError.
    """
    params.load()
    if not Path(DVC_YAML).exists():
        raise ParamsError(f"{Path.cwd()}: has no {DVC_YAML}; `assay init` makes a project")
    wanted = _versioned() | {name: _shared(name) for name in CI if Path(name).exists()}
    if Path(REQUIREMENTS).exists():
        wanted[REQUIREMENTS] = PINNED.sub(rf"\g<1>{version(DISTRIBUTION)}", _read(Path(REQUIREMENTS)))
    changed = [name for name, text in wanted.items() if not Path(name).exists() or _read(Path(name)) != text]
    if shutil.which("git") is None:
        raise RequirementError("there is no git, which keeps what is replaced; `apt-get install git` brings it")
    status = processes.run(["git", "status", "--porcelain", "--", *changed], what="git status") if changed else ""
    if status.strip():
        listed = ", ".join(line[3:] for line in status.splitlines())
        raise ParamsError(f"{listed}: has changes that are not committed and would be lost; commit or undo them first")
    for name in changed:
        _write(Path(), name, wanted[name])
    return changed


def shared() -> Path:
    """Return the folder of the files that projects get: the clone, or a folder beside the installed packages."""
    return interpreter.ROOT if interpreter.cloned() else interpreter.ROOT / "assay_project"


def _shared(name: str) -> str:
    return _read(shared() / name)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _versioned() -> dict[str, str]:
    """Return the files that say what Assay of which version runs, and on which packages."""
    pinned = f"{DISTRIBUTION}[all,s3]=={version(DISTRIBUTION)}\n"
    return {DVC_YAML: _shared(DVC_YAML), CONSTRAINTS: _shared(CONSTRAINTS), REQUIREMENTS: pinned}


def _write(folder: Path, name: str, text: str) -> None:
    outputs.replace(folder / name, text)
    if text.startswith("#!"):
        (folder / name).chmod(0o755)


def _source(folder: Path, checkpoint: str) -> str:
    """Check a checkpoint's place, and say how params.yaml names it: within the project by a relative path."""
    if checkpoint.startswith("hf://"):
        if not re.fullmatch(r"hf://[\w.-]+/[\w.-]+", checkpoint):
            raise ParamsError(f"--checkpoint: {checkpoint} is not of the form hf://org/name")
        return checkpoint
    place = Path(checkpoint).expanduser().resolve()
    if not (place / "config.json").exists():
        raise ParamsError(f"--checkpoint: {checkpoint} is no folder with a config.json; give one, or hf://org/name")
    inside = place.is_relative_to(folder.resolve())
    return os.path.relpath(place, folder.resolve()) if inside else str(place)


def _params(folder: Path, source: str, revision: str | None) -> str:
    """Return Assay's own params.yaml with another checkpoint and another name for the image."""
    values = params_file.read(shared() / params.PATH)
    values["checkpoint"]["source"], values["checkpoint"]["revision"] = source, revision
    values["image"]["name"] = _name(folder)
    text = params_file.text(values)
    params.check(text, str(folder / params.PATH))
    return text


def _name(folder: Path) -> str:
    """Make a name for an image of a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "model"


def _repository(folder: Path) -> Path:
    """Return the root of the Git repository that a folder lies in, which is made where there is none."""
    if shutil.which("git") is None:
        raise RequirementError("a project is a Git repository, and there is no git; `apt-get install git` brings it")
    asked = ["git", "-C", str(folder), "rev-parse", "--show-toplevel"]
    try:
        return Path(processes.run(asked, what="git rev-parse").strip())
    except BuildError:
        processes.run(["git", "init", "--quiet", str(folder)], what="git init")
        return folder.resolve()


def _readme(folder: Path, source: str) -> str:
    return f"""# {folder.resolve().name}

Artifacts of `{source}`, built, measured and chosen with Assay {version(DISTRIBUTION)}. `params.yaml` says what is
built, on which texts it is measured, and what the winner must keep; `dvc.yaml` is Assay's and is replaced by
`assay upgrade`.

```sh
python3 -m venv .venv
.venv/bin/pip install --constraint constraints.txt --requirement requirements.txt
.venv/bin/assay toolchain    # builds llama.cpp, once a machine
.venv/bin/dvc repro          # build, measure, choose, pack, prove
.venv/bin/assay ranking
```

`report/index.html` is the report. `assay why` says what `dvc repro` would run, and why.
"""
