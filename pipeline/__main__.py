"""The command line's entry. It and `pipeline.cli` are the only places that print or exit."""

import argparse
import errno
import os
import select
import signal
import sys
from collections.abc import Sequence

from pipeline import interpreter
from pipeline.cli import figures, project, shipping, stages, tools
from pipeline.errors import AssayError, StorageError

REFUSED = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
})  # fmt: skip
"""What a file system says of a place that cannot be written; a file that is missing is more likely our mistake."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.

    As the program itself, without `arguments`, a stage runs in a process of its own: a crash in native code is an
    error then, and not the end of the one who called.
    """
    ours, rest = _apart(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(ours, argparse.Namespace(gateway_flags=rest, supervised=arguments is None))
    try:
        options.run(options)
        sys.stdout.flush()
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not _unread():
            raise
        # Whoever read our output has enough of it, as `head` has; what is left would be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = error.filename or "while writing"
            print(f"assay: the disk is full ({where}); nothing was left half-written", file=sys.stderr)
        elif error.errno in REFUSED and error.filename is not None:
            print(f"assay: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        else:
            raise
        return StorageError.exit_code
    except ModuleNotFoundError as error:
        if (advice := interpreter.advice(error.name)) is None:
            raise
        print(f"assay: {advice}", file=sys.stderr)
        return AssayError.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _unread() -> bool:
    """Tell whether nobody reads our output any more: a pipe that breaks elsewhere is another matter."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


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
    for part in (project, stages, figures, shipping):
        part.add(commands)
    tools.add(commands, parser)
    return parser


if __name__ == "__main__":
    from pipeline.checkpoints import tokenizer

    tokenizer.spare_torch()
    sys.exit(main())
