"""Tests of the two text splits taken from CPython itself."""

from collections.abc import Iterator

import pytest

from pipeline.texts import stdlib
from pipeline.texts.document import Document

GRAM = 13
"""Words of a passage that counts as shared. Shorter ones ("if and only if ...") recur in any technical prose."""


@pytest.fixture(scope="module")
def training() -> list[Document]:
    """Return the training split."""
    return list(stdlib.documents("training"))


@pytest.fixture(scope="module")
def evaluation() -> list[Document]:
    """Return the evaluation split."""
    return list(stdlib.documents("evaluation"))


def passages(text: str) -> Iterator[tuple[str, ...]]:
    """Yield every run of 13 consecutive words."""
    words = text.split()
    for start in range(len(words) - GRAM + 1):
        yield tuple(words[start : start + GRAM])


def test_splits_share_no_document(training: list[Document], evaluation: list[Document]) -> None:
    names = [document.name for document in [*training, *evaluation]]
    assert len(set(names)) == len(names)
    assert not stdlib.LEFT_OUT & set(names)
    assert not stdlib.LEFT_OUT & stdlib.EVALUATION
    assert not {document.text for document in training} & {document.text for document in evaluation}


def test_every_held_out_document_is_found(evaluation: list[Document]) -> None:
    # A distribution may lack some, but a name that no CPython has would silently shrink the split.
    assert {document.name for document in evaluation} == stdlib.EVALUATION


def test_splits_share_hardly_any_passage(training: list[Document], evaluation: list[Document]) -> None:
    seen = {passage for document in training for passage in passages(document.text)}
    held_out = [passage for document in evaluation for passage in passages(document.text)]
    shared = sum(passage in seen for passage in held_out)
    assert shared / len(held_out) < 0.005


def test_splits_are_large_enough(training: list[Document], evaluation: list[Document]) -> None:
    # 60 windows of 511 tokens of at least 4 characters, with room for the tails which get dropped.
    assert sum(len(document.text) for document in evaluation) > 150_000
    assert sum(len(document.text) for document in training) > 1_500_000


def test_documents_are_sorted_clean_and_not_empty(training: list[Document], evaluation: list[Document]) -> None:
    for split in (training, evaluation):
        names = [document.name for document in split]
        assert names == sorted(names)
        for document in split:
            assert document.text == document.text.strip("\n")
            assert document.text.strip()


def test_reading_again_gives_the_same_documents(training: list[Document], evaluation: list[Document]) -> None:
    stdlib._all_documents.cache_clear()
    assert list(stdlib.documents("training")) == training
    assert list(stdlib.documents("evaluation")) == evaluation


def test_test_suites_and_installed_packages_are_left_out(training: list[Document]) -> None:
    for document in training:
        parts = document.name.partition(":")[2].split(".")
        assert not {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(parts)
