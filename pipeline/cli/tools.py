"""What Assay itself is built with: llama.cpp, the pins of images, completion for shells."""

import argparse
import sys

from pipeline import interpreter
from pipeline.cli.command import Commands, command
from pipeline.errors import RegistryError, RequirementError


def add(commands: Commands, program: argparse.ArgumentParser) -> None:
    """Add toolchain, images and completion, which is made of the whole `program`."""
    command(commands, "toolchain", "build llama.cpp and its bindings, once for this machine", _toolchain)
    about = "keep up to date what images are built on"
    images = commands.add_parser("images", help=about, description=about)
    jobs = images.add_subparsers(dest="job", required=True, metavar="JOB")
    about = "look the base images' digests up in their registries and write them to containers/images.toml"
    command(jobs, "pin", about, _pin)
    about = "write the requirements of engines' images again, with the versions of constraints.txt and wheels' hashes"
    command(jobs, "lock", about, _lock)
    about = 'print a script that completes commands, flags and files: `eval "$(assay completion bash)"`'
    parser = command(commands, "completion", about, _completion)
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.set_defaults(program=program)


def _toolchain(_: argparse.Namespace) -> None:
    """Run toolchain."""
    from pipeline.toolchains import llama_cpp

    llama_cpp.install_bindings(llama_cpp.build())


def _pin(_: argparse.Namespace) -> None:
    """Run `images pin`."""
    _own_pins()
    from pipeline.images import lookup

    found, failed = lookup.pin()
    for image, digest in found.items():
        print(f"{image} is {digest}")
    if failed:
        reasons = "\n".join(f"  {image}: {reason}" for image, reason in failed.items())
        raise RegistryError(f"images without a new digest:\n{reasons}")


def _lock(_: argparse.Namespace) -> None:
    """Run `images lock`."""
    _own_pins()
    from pipeline.images import wheels

    known: wheels.Known = {}
    for path in wheels.locked():
        failed = wheels.lock(path, known)
        print(f"{path}: {len(wheels.read(path))} packages")
        for target, reason in failed.items():
            print(f"  not for Python {target}: {reason}", file=sys.stderr)


def _own_pins() -> None:
    """Refuse to change files of an installed package, which the next installation would put back."""
    if not interpreter.cloned():
        raise RequirementError("`assay images` changes the pins of Assay itself; run it in a clone of its repository")


def _completion(options: argparse.Namespace) -> None:
    """Run completion."""
    import shtab

    print(shtab.complete(options.program, shell=options.shell))
