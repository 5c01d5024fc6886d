from dataclasses import dataclass

import numpy as np

from pipeline.texts import cut
from pipeline.texts.document import Document


@dataclass
class CharacterTokenizer:
    """One token a character."""

    def __call__(self, text: str, **options: object) -> dict[str, list[object]]:
        return {"input_ids": [ord(c) for c in text], "offset_mapping": [(i, i + 1) for i in range(len(text))]}


def encoded(*texts: str) -> list[cut.Encoded]:
    return [cut.encode(CharacterTokenizer(), Document(name=text, text=text)) for text in texts]


def test_no_window_reaches_over_a_document_and_tails_are_counted() -> None:
    windows, dropped = cut.windows(encoded("abcdefgh", "xy", "klmnop"), prefix=1, length=4, most=100)
    assert [bytes(row[1:].astype(np.uint8)).decode() for row in windows.ids] == ["abc", "def", "klm", "nop"]
    assert windows.ids[:, 0].tolist() == [1, 1, 1, 1]
    assert windows.document.tolist() == [0, 0, 2, 2]
    assert dropped == len("gh") + len("xy")


def test_bytes_are_those_of_the_scored_text() -> None:
    windows, _ = cut.windows(encoded("aé北🙂bc"), prefix=1, length=4, most=100)
    assert windows.utf8_bytes.tolist() == [1 + 2 + 3, 4 + 1 + 1]


def test_without_a_prefix_the_first_token_of_a_window_is_context_only() -> None:
    windows, _ = cut.windows(encoded("éab北cd"), prefix=None, length=3, most=100)
    assert [bytes(row.astype(np.uint32).tobytes()).decode("utf-32-le") for row in windows.ids] == ["éab", "北cd"]
    assert windows.utf8_bytes.tolist() == [2, 2]


def test_fewer_windows_are_spread_over_all_documents() -> None:
    windows, dropped = cut.windows(encoded("a" * 30, "b" * 30, "c" * 30), prefix=1, length=4, most=3)
    assert windows.document.tolist() == [0, 1, 2]
    assert dropped == 90 - 9


def test_overlap_finds_shared_runs_and_only_those() -> None:
    random = np.random.default_rng(0)

    def words(count: int) -> list[str]:
        return [f"w{number}" for number in random.integers(0, 50, size=count)]

    calibration = [words(64) for _ in range(20)]
    fresh = [words(64) for _ in range(20)]
    text = [" ".join(window) for window in calibration]
    assert cut.overlap([" ".join(window) for window in fresh], text) == 0
    assert cut.overlap([text[3].upper().replace(" ", ", "), text[4]], text) == 1
    fresh[7][10:30] = calibration[2][40:60]
    mixed = [" ".join(window) for window in fresh]
    assert cut.overlap(mixed, text) == (20 - 13 + 1) / (20 * (64 - 13 + 1))


def test_overlap_is_blind_to_spaces_rules_and_short_texts() -> None:
    table = "| --- | --- |\n" * 40 + " " * 400
    assert cut.overlap([table + "one"], [table + "two"]) == 0


def test_overlap_sees_scripts_without_spaces() -> None:
    text = "人工智能模型的量化会降低推理成本并且保持质量"
    assert cut.overlap([text], ["前言" + text]) == 1
