"""What acts on finished records: serving, pushing, pointing tags, publishing, copying out."""

import argparse
from pathlib import Path

from pipeline.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add serve, release, promote, rollback, publish and export."""
    about = "serve an artifact as its image would; further flags: `python -m containers.gateway --help`"
    parser = command(commands, "serve", about, _serve)
    parser.add_argument("name", nargs="?", help="a key of artifacts in params.yaml; default: the winner")
    about = "push the verified image to a registry, with SBOM, provenance, report and signature"
    parser = command(commands, "release", about, _release)
    parser.add_argument("--registry", required=True, metavar="HOST/REPOSITORY")
    parser.add_argument("--tag", metavar="VERSION", help="instead of the image's own version")
    parser.add_argument("--key", help="for cosign, which also reads COSIGN_PASSWORD; default: COSIGN_KEY")
    parser = command(commands, "promote", "point a tag at a released image", _promote)
    parser.add_argument("digest", help="sha256:..., as in release.json")
    _add_tag(parser)
    parser = command(commands, "rollback", "point a tag at the image before", _rollback)
    parser.add_argument("--list", action="store_true", help="show where the tag has been, and move nothing")
    _add_tag(parser)
    about = "upload an artifact to the Hub, with a model card that holds what was measured"
    parser = command(commands, "publish", about, _publish)
    parser.add_argument("name", metavar="ORG/NAME", help="made where there is none; HF_TOKEN must be allowed to")
    parser.add_argument("--artifact", metavar="NAME", help="default: the winner")
    parser.add_argument("--license", metavar="ID", help="the checkpoint's, as the Hub names it: apache-2.0")
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    parser.add_argument("--branch", default="main", help="default: main")
    about = "copy an artifact out, for Ollama, LM Studio and LocalAI or as plain files"
    parser = command(commands, "export", about, _export)
    parser.add_argument("form", choices=("ollama", "folder"))
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--artifact", metavar="NAME", help="default: the winner")


def _add_tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tag", help="such as stable")
    parser.add_argument("--registry", metavar="HOST/REPOSITORY", help="default: where the last release went")


def _serve(options: argparse.Namespace) -> None:
    """Run serve."""
    from pipeline.commands.serve import serve

    serve(options.name, options.gateway_flags)


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
