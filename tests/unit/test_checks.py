from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.backends.common import checks
from pipeline.backends.contract import Contents, Tensor, Tokenizer
from pipeline.errors import MeasurementError
from pipeline.records import Chat, Message, Sample, Vocabulary

BOS = 1


def chat(name: str, content: str, *ids: int) -> Chat:
    return Chat(name=name, messages=(Message(role="user", content=content),), add_generation_prompt=True, ids=ids)


def render(messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    return [BOS, *(ord(letter) for message in messages for letter in message.content)]


VOCABULARY = Vocabulary(
    size=4,
    special_ids={"bos": BOS, "eos": None},
    added_tokens={"<s>": BOS},
    adds_bos=True,
    chat_template="T",
    samples=(Sample(text="abc", ids=(1, 2, 3)),),
    chats=(chat("short", "A", BOS, 65), chat("long", "ABCDEFG", BOS, 65, 66, 67, 68, 69, 70, 71)),
)
TOKENIZER = Tokenizer(
    encode=lambda text: {"abc": [1, 2, 3], "<s>": [BOS]}[text],
    vocabulary_size=4,
    special_ids={"bos": BOS, "eos": 2},
    adds_bos=True,
    chat_template="T",
    render=render,
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


def test_samples_beyond_a_runtimes_known_limit_are_passed_over() -> None:
    """The artifact's notes tell of the limit; other samples are held against the checkpoint all the same."""
    wrong = replace(TOKENIZER, encode=lambda text: [BOS] if text == "<s>" else [9])
    assert problems(SOUND, tokenizer=replace(wrong, longest_run=2)) == []
    assert len(problems(SOUND, tokenizer=replace(wrong, longest_run=3))) == 1


def test_a_tokenizer_that_changed_is_told_in_each_way() -> None:
    other = replace(
        TOKENIZER,
        encode=lambda text: [1, 9, 3],
        vocabulary_size=3,
        special_ids={"bos": 0},
        adds_bos=False,
        chat_template=None,
    )
    found = problems(SOUND, tokenizer=other)
    assert found[:-1] == [
        "its tokenizer knows 3 tokens, the checkpoint's 4",
        "its bos token is 0, the checkpoint's 1",
        "the checkpoint's chat template is missing",
        "its tokenizer does not add BOS to plain text, the checkpoint's adds it",
        "its tokenizer gives [1, 9, 3] for the added token '<s>', which is 1",
    ]
    assert found[-1].endswith("they part at position 1")


def test_many_lost_tokens_are_counted_and_not_listed() -> None:
    lost = VOCABULARY.model_copy(update={"added_tokens": {f"<{i}>": i for i in range(900)}, "samples": ()})
    contents = Contents(
        tensors=iter([SOUND]),
        bits_per_weight=4,
        expected_bits_per_weight=(4, 4),
        tokenizer=replace(TOKENIZER, encode=lambda text: [1, 2]),
    )
    found = checks.problems(contents, lost)
    assert len(found) == 4
    assert found[-1] == "its tokenizer gets 900 of 900 added tokens wrong"


def test_conversations_that_agree() -> None:
    assert checks.chat_template_agreement(TOKENIZER, VOCABULARY) == (1.0, ())


def test_without_a_template_there_is_no_agreement_to_measure() -> None:
    assert checks.chat_template_agreement(TOKENIZER, VOCABULARY.model_copy(update={"chats": ()})) == (None, ())


def test_bos_twice_is_a_difference_and_no_damage() -> None:
    """A template that writes BOS, and a runtime that adds another."""
    twice = replace(TOKENIZER, render=lambda messages, prompt: [BOS, *render(messages, prompt)])
    agreement, (note,) = checks.chat_template_agreement(twice, VOCABULARY)
    assert agreement == 0
    assert note == (
        "its runtime renders 2 of 2 conversations differently: 'short' parts from the checkpoint's at position 1, "
        "1 65 where 65 is expected"
    )
    assert problems(SOUND, tokenizer=twice) == []


def test_ids_that_end_early_are_a_difference() -> None:
    short = replace(TOKENIZER, render=lambda messages, prompt: render(messages, prompt)[:6])
    agreement, (note,) = checks.chat_template_agreement(short, VOCABULARY)
    assert agreement == 0.5
    assert "'long' parts from the checkpoint's at position 6, the end where 70 71 is expected" in note


def test_a_runtime_that_refuses_disagrees() -> None:
    def refuse(messages: Sequence[Message], prompt: bool) -> list[int]:
        if len(messages[0].content) > 1:
            raise MeasurementError("no such filter")
        return render(messages, prompt)

    agreement, (note,) = checks.chat_template_agreement(replace(TOKENIZER, render=refuse), VOCABULARY)
    assert agreement == 0.5
    assert note.endswith("1 of 2 conversations differently: 'long' is refused: no such filter")
