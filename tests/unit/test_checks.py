from collections.abc import Iterator

import numpy as np

from pipeline.backends.common import checks
from pipeline.backends.contract import Contents, Tensor, Tokenizer
from pipeline.records import Sample, Vocabulary

VOCABULARY = Vocabulary(
    size=4, special_ids={"bos": 1, "eos": None}, chat_template="T", samples=(Sample(text="abc", ids=(1, 2, 3)),)
)
TOKENIZER = Tokenizer(
    encode=lambda text: [1, 2, 3], vocabulary_size=4, special_ids={"bos": 1, "eos": 2}, chat_template="T"
)
SOUND = Tensor(name="w", values=np.arange(6.0).reshape(2, 3), packed=False)


def problems(*tensors: Tensor, tokenizer: Tokenizer = TOKENIZER, bits: float = 4.5) -> list[str]:
    stream: Iterator[Tensor] = iter(tensors)
    contents = Contents(tensors=stream, bits_per_weight=bits, expected_bits_per_weight=(4, 5), tokenizer=tokenizer)
    return checks.problems(contents, VOCABULARY)


def test_a_sound_artifact_has_no_problems() -> None:
    norm = Tensor(name="norm", values=np.ones(8), packed=False)
    packed = Tensor(name="q", values=np.array([[1, 2], [3, 4]], dtype=np.int32), packed=True)
    assert problems(SOUND, norm, packed) == []


def test_damaged_tensors_are_named() -> None:
    nan = Tensor(name="nan", values=np.array([1.0, np.nan, np.inf]), packed=False)
    collapsed = Tensor(name="o_proj.qweight", values=np.full((4, 4), 0x88, dtype=np.uint8), packed=True)
    empty = Tensor(name="empty", values=np.zeros((0, 4)), packed=False)
    found = problems(nan, collapsed, empty)
    assert found == [
        "nan holds 2 values that are NaN or infinite",
        "o_proj.qweight has collapsed: all 16 values are 136",
        "empty is empty",
    ]


def test_no_tensors_and_wrong_size() -> None:
    assert problems(bits=9.0) == ["holds no tensors", "has 9.000 bits per weight, expected 4.000 to 5.000"]


def test_a_tokenizer_that_changed_is_told_in_each_way() -> None:
    other = Tokenizer(encode=lambda text: [1, 9, 3], vocabulary_size=3, special_ids={"bos": 0}, chat_template=None)
    found = problems(SOUND, tokenizer=other)
    assert found[0] == "its tokenizer knows 3 tokens, the checkpoint's 4"
    assert found[1] == "its bos token is 0, the checkpoint's 1"
    assert found[2] == "the checkpoint's chat template is missing"
    assert found[3].endswith("they part at position 1")
