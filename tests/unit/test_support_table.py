"""The README shows what docs/support.json says, and docs/support.json covers every family and backend."""

import pytest

from tests.support import support_table
from tests.support.families import FAMILIES
from tests.support.support_table import Answer, Row, Support


def test_the_readme_shows_what_was_found() -> None:
    text = support_table.README.read_text(encoding="utf-8")
    assert support_table.insert(text, support_table.render(support_table.load())) == text, (
        "run `python -m tests.support.support_table`"
    )


def test_every_family_has_an_answer_of_every_backend() -> None:
    families = support_table.load().families
    assert {name: (row.title, row.architecture) for name, row in families.items()} == {
        name: (family.title, family.architecture) for name, family in FAMILIES.items()
    }
    assert all(set(row.backends) == set(support_table.BACKENDS) for row in families.values())


def test_a_reason_is_told_once_and_pointed_to_from_every_no() -> None:
    yes, no = Answer(reason=None), Answer(reason="has too many wheels")
    row = Row(title="One", architecture="OneForCausalLM", backends={"gguf": yes, "gptq": no, "awq": no, "onnx": yes})
    lines = support_table.render(Support(families={"one": row, "two": row.model_copy(update={"title": "Two"})}))
    assert "| One | `OneForCausalLM` | yes | no (1) | no (1) | yes |" in lines.splitlines()
    assert "| Two | `OneForCausalLM` | yes | no (1) | no (1) | yes |" in lines.splitlines()
    assert lines.endswith("\n\n1. has too many wheels")


def test_a_readme_without_markers_is_an_error_and_not_a_table_at_some_place() -> None:
    with pytest.raises(ValueError, match="<!-- support -->"):
        support_table.insert("# Title\n<!-- /support -->", "table")


def test_what_stands_around_the_markers_stays() -> None:
    text = "before\n<!-- support -->\nold\n<!-- /support -->\nafter\n"
    assert support_table.insert(text, "new") == "before\n<!-- support -->\nnew\n<!-- /support -->\nafter\n"
