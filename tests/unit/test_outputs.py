import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import outputs
from pipeline.errors import StorageError

TARGET = Path("artifacts/one")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_finished_folder_replaces_the_old_one() -> None:
    for text in ("old", "new"):
        with outputs.folder(TARGET) as out:
            (out / f"{text}.txt").write_text(text)
    assert [path.name for path in TARGET.iterdir()] == ["new.txt"]


def test_a_failure_leaves_the_old_one_and_nothing_else() -> None:
    with outputs.folder(TARGET) as out:
        (out / "old.txt").write_text("old")
    with suppress(KeyboardInterrupt), outputs.folder(TARGET) as out:
        (out / "half.txt").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in TARGET.iterdir()] == ["old.txt"]
    assert not [path for path in outputs.SCRATCH.iterdir() if path.is_dir()]


def test_a_killed_process_leaves_no_target_and_the_next_run_starts_clean() -> None:
    program = textwrap.dedent(
        """
        import time
        from pathlib import Path
        from pipeline import outputs
        with outputs.folder(Path("artifacts/one")) as out:
            (out / "half.txt").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    root = Path(outputs.__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    second = outputs.folder(TARGET)
    with pytest.raises(StorageError, match="another process is making it"):
        second.__enter__()
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(0.1)
    assert not TARGET.exists()
    with outputs.folder(TARGET) as out:
        assert list(out.iterdir()) == []
        (out / "whole.txt").write_text("whole")
    assert [path.name for path in TARGET.iterdir()] == ["whole.txt"]
