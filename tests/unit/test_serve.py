"""`assay serve [NAME] FLAGS`: whose words are whose."""

from pathlib import Path

import pytest

from pipeline.__main__ import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--port", "8081"], "selection.json: cannot be read"),
        (["serve", "--port", "banana"], "selection.json: cannot be read"),
        (["serve", "some", "--port", "banana"], "port"),
    ],
)
def test_what_follows_the_name_is_the_gateways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) != 0
    assert message in capsys.readouterr().err


def test_only_serve_takes_flags_that_are_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["params", "--port", "8081"])
    assert "unrecognized arguments: --port 8081" in capsys.readouterr().err
