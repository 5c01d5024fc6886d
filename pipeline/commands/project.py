"""`assay init` and `assay upgrade`: the folder of a model, and bringing it to the version that is installed.

A project is params.yaml and dvc.yaml in a Git and DVC repository; the tool is installed beside it. Assay's own
repository is such a folder, and its files are the ones that others get.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from pipeline import interpreter, outputs, params, processes
from pipeline.commands import params_file
from pipeline.errors import ParamsError, RequirementError, StorageError

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

HUB = re.compile(r"hf://\w[\w.-]*/\w[\w.-]*/?")

WRITTEN = "# What the pipeline writes"
"""What follows this in Assay's own .gitignore is ignored in every project."""


def init(folder: Path, checkpoint: str, revision: str | None) -> list[str]:
    """Make a project for a checkpoint; return what to type next.

    `checkpoint` is `hf://org/name` or a folder. Nothing is fetched, built or measured. An interrupted one is finished
    by the next: dvc.yaml is written last. Raises ParamsError where the folder has a project already, or files of these
    names that are somebody else's, or where the checkpoint is none of these; RequirementError without Git.
    """
    folder = folder.expanduser()
    source = _source(folder, checkpoint, revision)
    if (folder / DVC_YAML).exists():
        raise ParamsError(f"{folder} is a project already; `assay upgrade`, in it, brings it to this version")
    flow, *others = (_versioned() | {str(params.PATH): _params(folder, source, revision)}).items()
    files = dict(others)
    if taken := [name for name, text in files.items() if (folder / name).exists() and _read(folder / name) != text]:
        raise ParamsError(f"{folder}: has a {taken[0]} that is not Assay's; move it away, or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror})") from error
    root = _repository(folder)
    at_root = root == folder.resolve()
    hosts = {name: _shared(name) for name in CI}
    if at_root and all(not (folder / name).exists() or _read(folder / name) == text for name, text in hosts.items()):
        files |= hosts
    files |= {README: _readme(folder, source)} if not (folder / README).exists() else {}
    for name, text in files.items():
        _write(folder, name, text)
    _ignore(folder, source)
    _dvc(folder, at_root=at_root)
    _write(folder, *flow)
    return [f"cd {shlex.quote(str(folder))}", "git add . && git commit -m 'A project'", "assay plan", "dvc repro"]


def _dvc(folder: Path, *, at_root: bool) -> None:
    """Make it a DVC repository, set up as Assay's own, unless it is one."""
    ours = not (folder / ".dvcignore").exists()
    if not (folder / DVC_CONFIG).exists():
        command = [sys.executable, "-m", "dvc", "init", "--quiet", *([] if at_root else ["--subdir"])]
        processes.run(command, what="dvc init", cwd=folder)
    if _read(folder / DVC_CONFIG).strip():
        return  # somebody's own settings
    outputs.replace(folder / DVC_CONFIG, _shared(DVC_CONFIG))
    if ours:
        outputs.replace(folder / ".dvcignore", _shared(".dvcignore"))
    added = _git(folder, "add", "--", DVC_CONFIG, ".dvcignore")  # as DVC adds them itself, empty
    if added.returncode != 0:
        raise StorageError(f"{folder}: git cannot add {DVC_CONFIG}: {added.stderr.strip()}")


def _ignore(folder: Path, source: str) -> None:
    """Have Git ignore what the pipeline writes, and the weights where they lie here, beside what it ignores already."""
    path = folder / IGNORED
    kept = _read(path) if path.exists() else "/.venv/\n/.assay/\n"
    if WRITTEN in kept:
        return
    weights = "" if Path(source).is_absolute() or "://" in source else f"/{source}/\n"
    outputs.replace(path, f"{kept.rstrip()}\n{weights}\n{WRITTEN}{_shared(IGNORED).partition(WRITTEN)[2]}")


def upgrade() -> list[str]:
    """Bring this folder's dvc.yaml and pins to the installed version; return the files that changed.

    params.yaml stays as it is, and is checked first. What Git could not give back is not overwritten: ParamsError.
    """
    params.load()
    wanted = _versioned()
    if Path(REQUIREMENTS).exists():
        wanted[REQUIREMENTS] = PINNED.sub(rf"\g<1>{version(DISTRIBUTION)}", _read(Path(REQUIREMENTS)))
    changed = [name for name, text in wanted.items() if not Path(name).exists() or _read(Path(name)) != text]
    there = [name for name in changed if Path(name).exists()]
    lost = [name for name in there if _git(Path(), "diff", "--quiet", "HEAD", "--", name).returncode != 0]
    lost += [name for name in there if _git(Path(), "ls-files", "--error-unmatch", "--", name).returncode != 0]
    if lost:
        listed = ", ".join(dict.fromkeys(lost))
        raise ParamsError(f"{listed}: has changes that are not committed and would be lost; commit or undo them first")
    for name in changed:
        _write(Path(), name, wanted[name])
    return changed


def params_path(asked: Path | None, checkpoint: str | None) -> Path:
    """Return the params.yaml that a plan is of: the one asked for, or here; for a named checkpoint else Assay's own."""
    if asked is not None or params.PATH.exists() or checkpoint is None:
        return asked or params.PATH
    return shared() / params.PATH


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


def _source(folder: Path, checkpoint: str, revision: str | None) -> str:
    """Check a checkpoint's place, and say how params.yaml names it: within the project by a relative path."""
    if checkpoint.startswith("hf://"):
        if not HUB.fullmatch(checkpoint):
            raise ParamsError(f"--checkpoint: {checkpoint} is not of the form hf://org/name")
        return checkpoint.rstrip("/")
    place = Path(checkpoint).expanduser().resolve()
    if not (place / "config.json").is_file():
        name = checkpoint.removeprefix("https://huggingface.co/").rstrip("/")
        hint = f"; for the Hub, say hf://{name}" if HUB.fullmatch(f"hf://{name}") else "; give one, or hf://org/name"
        raise ParamsError(f"--checkpoint: {checkpoint} is no folder with a config.json{hint}")
    if revision is not None:
        raise ParamsError(f"--revision: a folder has none; it is for hf:// checkpoints (found {revision})")
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
    asked = _git(folder, "rev-parse", "--show-toplevel")
    if asked.returncode == 0:
        return Path(asked.stdout.rstrip("\n"))
    if "not a git repository" not in asked.stderr:
        raise RequirementError(f"{folder}: git says: {asked.stderr.strip()}")
    made = _git(folder, "init", "--quiet")
    if made.returncode != 0:
        raise StorageError(f"{folder}: git cannot make a repository there: {made.stderr.strip()}")
    return folder.resolve()


def _git(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Ask git, in English; RequirementError where there is none."""
    env = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            ["git", *words], cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        if shutil.which("git") is not None:
            raise
        told = "a project is a Git repository, and there is no git; `apt-get install git` brings it"
        raise RequirementError(told) from error


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
