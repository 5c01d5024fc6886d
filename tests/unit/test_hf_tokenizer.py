from datetime import datetime
from pathlib import Path

from pipeline.backends.common import hf_tokenizer
from tests.support import checkpoints

DAY_OF_THE_MONTH = "w{{ strftime_now('%d') | int }}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}w7"


def folder(path: Path, template: str) -> Path:
    """A tokenizer of the words w0 to w31 with a chat template."""
    return checkpoints.write(path / "tokenizer", {**checkpoints.tokenizer(), "chat_template.jinja": template.encode()})


def test_a_template_with_a_date_gives_one_vocabulary_on_every_day(tmp_path: Path) -> None:
    tokenizer = hf_tokenizer.load(folder(tmp_path, DAY_OF_THE_MONTH))
    vocabulary = hf_tokenizer.vocabulary(tokenizer, [])
    assert vocabulary.reads_clock
    assert vocabulary.chats == ()
    before = datetime.now().day
    today = {chat.ids for chat in hf_tokenizer.with_chats(vocabulary, tokenizer).chats}
    assert today
    assert today <= {(before,), (datetime.now().day,)}


def test_a_conversation_that_the_template_refuses_is_left_out(tmp_path: Path) -> None:
    vocabulary = hf_tokenizer.vocabulary(hf_tokenizer.load(folder(tmp_path, NO_SYSTEM)), [])
    names = {name for name, _, _ in hf_tokenizer.CONVERSATIONS}
    assert {chat.name for chat in vocabulary.chats} == names - {"system and user"}
    assert not vocabulary.reads_clock


def test_runs_of_sentencepiece_spaces_are_no_added_tokens(tmp_path: Path) -> None:
    tokenizer = hf_tokenizer.load(folder(tmp_path, NO_SYSTEM))
    tokenizer.add_tokens(["▁▁", "<|begin▁of▁sentence|>"])
    added = hf_tokenizer.vocabulary(tokenizer, []).added_tokens
    assert "<|begin▁of▁sentence|>" in added
    assert "▁▁" not in added
