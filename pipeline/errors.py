"""Everything that can go wrong for a user: one tree, one exit code a cause, each message says what to do."""

from typing import ClassVar


class AssayError(ValueError):
    """Something the user can act on. `__main__` prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class ParamsError(AssayError):
    """params.yaml, or a flag, asks for something that does not exist or makes no sense."""

    exit_code = 2


class CheckpointError(AssayError):
    """The checkpoint is missing, damaged, unsafe, or of no supported architecture."""

    exit_code = 3


class HubError(AssayError):
    """The Hub, or the way to it, did not give what was asked for."""

    exit_code = 4


class CorpusError(AssayError):
    """The texts give no usable windows, or calibration and evaluation overlap."""

    exit_code = 5


class RequirementError(AssayError):
    """This machine lacks a tool, a library or a device."""

    exit_code = 6


class CapacityError(RequirementError):
    """This machine has too little memory or disk for an artifact."""


class BuildError(AssayError):
    """A conversion tool failed, or what it wrote did not pass the structural checks."""

    exit_code = 7


class MeasurementError(AssayError):
    """An artifact could not be loaded, scored or timed."""

    exit_code = 8


class SelectionError(AssayError):
    """No artifact passes the constraints."""

    exit_code = 9


class StorageError(AssayError):
    """The disk is full, or a file cannot be read or written."""

    exit_code = 10


class VerificationError(AssayError):
    """The built image does not serve what was measured."""

    exit_code = 12


class RegistryError(AssayError):
    """A registry, or the way to it, did not take or give what it was asked to; or an image may not go there."""

    exit_code = 11


class ComparisonError(AssayError):
    """A comparison found what `--fail-on` names."""

    exit_code = 13


class NativeCrashError(BuildError):
    """A process died by a signal: the stage itself, or a tool, a worker or an engine that it had started."""

    exit_code = 14


class FailedRowsError(AssayError):
    """The run went to its end, and some of its artifacts are rows that say why there are no figures."""

    exit_code = 15
