"""The command line: one subcommand a noun. The only place that prints or exits."""

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import interpreter, paths, supervision
from pipeline.errors import AssayError, ParamsError, RegistryError, StorageError

if TYPE_CHECKING:
    from pipeline.params import Params

NOUNS = {
    "inputs": "note the state of this machine and of the folders that params.yaml names",
    "checkpoint": "fetch or link the checkpoint and check it",
    "corpus": "cut the texts into windows of token ids",
    "reference": "score the unquantized checkpoint",
    "answers": "let the unquantized checkpoint answer the tasks",
    "artifact": "build one artifact",
    "quality": "score one artifact",
    "tasks": "let one artifact answer the tasks",
    "latency": "time one artifact",
    "selection": "rank the artifacts and pick the winner",
    "engine": "build the image that the winner runs on, or find it",
    "image": "put the winner, the gateway and the evidence into an image",
    "verification": "start the image and hold it against what was measured",
    "outcome": "fail where an artifact failed, after everything else",
}
NAMED = ("artifact", "quality", "tasks", "latency")
STRICT = ("inputs", *NAMED, "engine", "image")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.

    As the program itself, without `arguments`, a stage runs in a process of its own: a crash in native code is an
    error then, and not the end of the one who called.
    """
    ours, rest = _apart(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(ours, argparse.Namespace(gateway_flags=rest, supervised=arguments is None))
    try:
        options.run(options)
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = error.filename or "while writing"
        print(f"assay: the disk is full ({where}); nothing was left half-written", file=sys.stderr)
        return StorageError.exit_code
    except ModuleNotFoundError as error:
        if (advice := interpreter.advice(error.name)) is None:
            raise
        print(f"assay: {advice}", file=sys.stderr)
        return AssayError.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _apart(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split off the gateway's flags, behind `serve [NAME]`: argparse would take the value of one for NAME."""
    if words[:1] != ["serve"] or words[1:2] in (["-h"], ["--help"]):
        return words, ()
    end = 1 if words[1:2] and words[1].startswith("-") else 2
    return words[:end], words[end:]


def _parser() -> argparse.ArgumentParser:
    """Each command's `run` is what carries it out."""
    parser = argparse.ArgumentParser(prog="assay", description="Build, measure and choose a model's artifacts.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_stages(commands)
    _add_plan(commands)
    _add_images(commands)
    _add_shipping(commands)
    _add_compare(commands)
    about = "serve an artifact as its image would; further flags: `python -m containers.gateway --help`"
    command = commands.add_parser("serve", help=about, description=about)
    command.add_argument("name", nargs="?", help="a key of artifacts in params.yaml; default: the winner")
    command.set_defaults(run=_serve)
    about = "merge profiles/NAME.yaml into params.yaml, as `nvidia` for what GPUs add"
    command = commands.add_parser("profile", help=about, description=about)
    command.add_argument("name")
    command.set_defaults(run=_profile)
    about = "say why `dvc repro` will run a stage: which inputs, code, tools or settings are not those of its last run"
    command = commands.add_parser("why", help=about, description=about)
    command.add_argument("stage", nargs="?", help="such as quality@gguf-q8_0, with what it needs; default: all")
    command.set_defaults(run=_why)
    for name, about, run in (
        ("params", "check params.yaml", _params),
        ("ranking", "print the ranking of the last run", _ranking),
        ("toolchain", "build llama.cpp and its bindings, once for this machine", _toolchain),
    ):
        commands.add_parser(name, help=about).set_defaults(run=run)
    return parser


def _add_stages(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the stages of dvc.yaml."""
    for noun, about in NOUNS.items():
        command = commands.add_parser(noun, help=about, description=about)
        command.set_defaults(run=_stage)
        if noun in NAMED:
            command.add_argument("name", help="a key of artifacts in params.yaml")
        if noun in STRICT:
            about = "fail for what cannot be done, instead of noting why and going on; ASSAY_STRICT=1 says the same"
            command.add_argument("--strict", action="store_true", help=about)


def _stage(options: argparse.Namespace) -> None:
    """Run one stage, supervised; what fails for one artifact alone becomes a row, unless it is to stop the run."""
    if getattr(options, "strict", False):
        os.environ["ASSAY_STRICT"] = "1"
    noun: str = options.command
    names = (options.name,) if noun in NAMED else ()
    try:
        if options.supervised:
            supervision.supervise(" ".join((noun, *names)))
        _run(noun, *names)
    except Exception as error:
        if not names:
            raise
        _keep(noun, *names, error)
    supervision.done()


def _keep(noun: str, name: str, error: Exception) -> None:
    """Make a row of what failed for one artifact, and say so; any other error is raised again."""
    from pipeline import params
    from pipeline.stages import failure

    if not failure.concerns_one(error):
        raise error
    again = failure.keep(params.load(), noun, name, error).again
    told = f"assay: {error}" if isinstance(error, AssayError) else "".join(traceback.format_exception(error)).rstrip()
    print(
        f"{told}\nassay: {name} is a row that says so now, and the run goes on; to try again: {again}", file=sys.stderr
    )


def _run(noun: str, *names: str) -> None:
    """Do a stage's work."""
    from pipeline import params

    loaded = params.load()
    if unknown := [name for name in names if name not in loaded.artifacts]:
        known = ", ".join(loaded.artifacts)
        raise ParamsError(f"{unknown[0]!r} is not a key of artifacts in params.yaml; known: {known}")
    _announce(loaded, " ".join((noun, *names)))
    getattr(importlib.import_module(f"pipeline.stages.{noun}"), noun)(loaded, *names)


def _announce(params: "Params", what: str) -> None:
    """Tell which stage this is and how far the flow has come, counting the outputs that are there."""
    singles = [paths.CHECKPOINT / "assay.json", paths.CORPUS, paths.REFERENCE, paths.ANSWERS, paths.SELECTION]
    singles += [paths.ENGINE, paths.IMAGE, paths.VERIFICATION]
    places = (paths.artifact, paths.quality, paths.tasks, paths.latency)
    outputs = singles + [place(name) for place in places for name in params.artifacts]
    there = sum(path.exists() for path in outputs)
    print(f"assay: {what} ({there} of {len(outputs)} outputs are there)", file=sys.stderr)


def _serve(options: argparse.Namespace) -> None:
    """Run serve."""
    from pipeline.commands.serve import serve

    serve(options.name, options.gateway_flags)


def _profile(options: argparse.Namespace) -> None:
    """Run profile."""
    from pipeline.commands.profile import profile

    print(*(f"params.yaml: {key}" for key in profile(options.name)), sep="\n")


def _why(options: argparse.Namespace) -> None:
    """Run why."""
    from pipeline.commands.why import text

    print(*text(options.stage), sep="\n")


def _params(_: argparse.Namespace) -> None:
    """Run params."""
    from pipeline import params

    print(f"params.yaml is valid: {len(params.load().artifacts)} artifacts")


def _ranking(_: argparse.Namespace) -> None:
    """Run ranking."""
    from pipeline.report import terminal

    terminal.print_ranking()


def _toolchain(_: argparse.Namespace) -> None:
    """Run toolchain."""
    from pipeline.toolchains import llama_cpp

    llama_cpp.install_bindings(llama_cpp.build())


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add plan."""
    about = "size every artifact before it is built, from config.json and the weights' headers alone"
    command = commands.add_parser("plan", help=about, description=about)
    command.add_argument("checkpoint", nargs="?", help="hf://org/name, a folder or config.json; default: params.yaml's")
    command.add_argument("--hardware", default="detect", metavar="NAME", help="in pipeline/hardware.toml, or detect")
    command.add_argument("--context", type=int, metavar="N", help="tokens of one stream; default: 4096, or the model's")
    command.add_argument("--concurrency", type=int, metavar="N", help="streams; default: serving.concurrency's largest")
    command.add_argument("--matrix", action="store_true", help="name the smallest hardware for 1B to 1T models instead")
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> None:
    """Run plan."""
    from pipeline.commands import plan, plan_table

    for name in ("context", "concurrency"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ParamsError(f"--{name}: {getattr(options, name)} is not positive")
    if options.matrix:
        tiers = plan.matrix(options.context, options.concurrency)
        print(tiers.model_dump_json(indent=2)) if options.json else plan_table.print_matrix(tiers)
        return
    found = plan.plan(
        options.checkpoint,
        on=options.hardware,
        context_tokens=options.context,
        concurrency=options.concurrency,
        path=options.params,
    )
    print(found.model_dump_json(indent=2)) if options.json else plan_table.print_plan(found)


def _add_images(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add what keeps the pins of images up to date."""
    about = "keep up to date what images are built on"
    jobs = commands.add_parser("images", help=about, description=about).add_subparsers(
        dest="job", required=True, metavar="JOB"
    )
    for name, about, run in (
        ("pin", "look the base images' digests up in their registries and write them to containers/images.toml", _pin),
        (
            "lock",
            "write containers/*/requirements.txt again, with the versions of constraints.txt and wheels' hashes",
            _lock,
        ),
    ):
        jobs.add_parser(name, help=about, description=about).set_defaults(run=run)


def _lock(_: argparse.Namespace) -> None:
    """Run `images lock`."""
    from pipeline.images import wheels

    known: wheels.Known = {}
    for path in wheels.locked():
        failed = wheels.lock(path, known)
        print(f"{path}: {len(wheels.read(path))} packages")
        for target, reason in failed.items():
            print(f"  not for Python {target}: {reason}", file=sys.stderr)


def _pin(_: argparse.Namespace) -> None:
    """Run `images pin`."""
    from pipeline.images import lookup

    found, failed = lookup.pin()
    for image, digest in found.items():
        print(f"{image} is {digest}")
    if failed:
        reasons = "\n".join(f"  {image}: {reason}" for image, reason in failed.items())
        raise RegistryError(f"images without a new digest:\n{reasons}")


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add what sets two runs side by side."""
    about = "tell what changed between two runs: git revisions, DVC experiments or folders with their records"
    command = commands.add_parser("compare", help=about, description=about)
    command.add_argument("before", nargs="?", default="HEAD", metavar="REV", help="default: HEAD")
    command.add_argument("after", nargs="?", default=".", metavar="REV", help="default: the workspace")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
    command.add_argument("--all", action="store_true", help="every metric, not the ranking's and selection's alone")
    about = "exit with 13 when something got worse, or also when the figures cannot tell"
    command.add_argument("--fail-on", choices=("worse", "unclear"), help=about)
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    """Run compare: the text to stdout, so that CI may post it; the page to its file."""
    from pipeline.commands import compare

    found = compare.compare(options.before, options.after, everything=options.all)
    print(compare.text(found), end="")
    if options.html is not None:
        compare.write_page(found, options.html)
    if options.fail_on is not None:
        compare.require(found, options.fail_on)


def _add_shipping(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add what acts on finished records: release, promote, rollback, publish, export."""
    about = "push the verified image to a registry, with SBOM, provenance, report and signature"
    command = commands.add_parser("release", help=about, description=about)
    command.add_argument("--registry", required=True, metavar="HOST/REPOSITORY")
    command.add_argument("--tag", metavar="VERSION", help="instead of the image's own version")
    command.add_argument("--key", help="for cosign, which also reads COSIGN_PASSWORD; default: COSIGN_KEY")
    command.set_defaults(run=_release)
    about = "point a tag at a released image"
    command = commands.add_parser("promote", help=about, description=about)
    command.add_argument("digest", help="sha256:..., as in release.json")
    _add_tag(command)
    command.set_defaults(run=_promote)
    about = "point a tag at the image before"
    command = commands.add_parser("rollback", help=about, description=about)
    command.add_argument("--list", action="store_true", help="show where the tag has been, and move nothing")
    _add_tag(command)
    command.set_defaults(run=_rollback)
    about = "upload an artifact to the Hub, with a model card that holds what was measured"
    command = commands.add_parser("publish", help=about, description=about)
    command.add_argument("name", metavar="ORG/NAME", help="made where there is none; HF_TOKEN must be allowed to")
    command.add_argument("--artifact", metavar="NAME", help="default: the winner")
    command.add_argument("--license", metavar="ID", help="the checkpoint's, as the Hub names it: apache-2.0")
    command.add_argument("--private", action="store_true", help="make a new repository a private one")
    command.add_argument("--branch", default="main", help="default: main")
    command.set_defaults(run=_publish)
    about = "copy an artifact out, for Ollama, LM Studio and LocalAI or as plain files"
    command = commands.add_parser("export", help=about, description=about)
    command.add_argument("form", choices=("ollama", "folder"))
    command.add_argument("out", type=Path, help="a folder that is not there yet")
    command.add_argument("--artifact", metavar="NAME", help="default: the winner")
    command.set_defaults(run=_export)


def _add_tag(command: argparse.ArgumentParser) -> None:
    command.add_argument("tag", help="such as stable")
    command.add_argument("--registry", metavar="HOST/REPOSITORY", help="default: where the last release went")


def _release(options: argparse.Namespace) -> None:
    """Run release."""
    from pipeline.commands.release import release

    record = release(options.registry, options.tag, options.key)
    print(f"{record.registry}/{record.repository}:{record.tag} is {record.digest}")
    print(f"sent {record.bytes_sent:,} bytes of blobs; {record.bytes_skipped:,} were there")


def _promote(options: argparse.Namespace) -> None:
    """Run promote."""
    from pipeline.commands import channel, release

    print(channel.promote(options.registry or release.default_registry(), options.digest, options.tag))


def _rollback(options: argparse.Namespace) -> None:
    """Run rollback."""
    from pipeline.commands import channel, release

    registry = options.registry or release.default_registry()
    if options.list:
        print(*channel.history(registry, options.tag), sep="\n")
    else:
        print(channel.rollback(registry, options.tag))


def _publish(options: argparse.Namespace) -> None:
    """Run publish."""
    from pipeline.commands.publish import publish

    licence, private, branch = options.license, options.private, options.branch
    print(publish(options.name, options.artifact, licence=licence, private=private, branch=branch))


def _export(options: argparse.Namespace) -> None:
    """Run export."""
    from pipeline.commands.export import export

    print(export(options.form, options.out, options.artifact))


if __name__ == "__main__":
    from pipeline.checkpoints import tokenizer

    tokenizer.spare_torch()
    sys.exit(main())
