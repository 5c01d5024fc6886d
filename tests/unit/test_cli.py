"""The command line as a whole: what it offers, and how shells complete it."""

import re
import shutil
import signal
import subprocess
import sys

import pytest

from pipeline.__main__ import main
from pipeline.errors import StorageError
from tests.support.documents import ALL


def completion(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def test_bash_completes_commands_and_their_flags(capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        completion("bash", capsys)
        + """
        complete_line() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _shtab_assay
            echo "${COMPREPLY[@]}"
        }
        complete_line assay ini
        complete_line assay init --ch
        complete_line assay compare --fail-on w
    """
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert [line.split() for line in done.stdout.splitlines()] == [["init"], ["--checkpoint"], ["worse"]]


def test_zsh_gets_a_script_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    script = completion("zsh", capsys)
    assert script.startswith("#compdef assay")
    if shutil.which("zsh") is not None:
        subprocess.run(["zsh", "-n"], input=script, text=True, check=True)


def test_the_documents_name_no_command_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    offered = set(re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, re.MULTILINE))
    lines = [line for block in ALL if block.language == "sh" for line in block.commands]
    named = {noun for line in lines for noun in re.findall(r"\bassay ([a-z]+)\b", line)}
    assert {"init", "release", "why"} <= named <= offered


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "/proc/project", "--checkpoint", "hf://org/name"),
        ("init", "/dev/null/project", "--checkpoint", "hf://org/name"),
        ("init", 300 * "a", "--checkpoint", "hf://org/name"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert main(arguments) == StorageError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"assay: {arguments[1]}")


def test_a_reader_that_has_enough_is_no_error() -> None:
    script = f"set -o pipefail; {sys.executable} -m pipeline completion bash | head -c 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 128 + signal.SIGPIPE)
