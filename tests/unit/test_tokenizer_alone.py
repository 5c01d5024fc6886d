"""Tokenizers opened in a process that has no use for torch."""

import json
import subprocess
import sys

import pytest

from pipeline.checkpoints import tokenizer
from tests.support import demo

TEXT = "Straße  </s> x = 3.14\n\n\tnaïve 北京 🙂"

ALONE = f"""
import json, sys
from pathlib import Path
from pipeline.checkpoints import tokenizer
tokenizer.spare_torch()
opened = tokenizer.load(Path({str(demo.CHECKPOINT)!r}))
chat = opened.apply_chat_template([{{"role": "user", "content": "Hello"}}], tokenize=True, return_dict=False)
spared = "torch" not in sys.modules
import torch
print(json.dumps([spared, opened.encode({TEXT!r}), list(chat)]))
"""


@pytest.fixture(scope="module")
def alone() -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)


def test_torch_is_not_imported_for_a_tokenizer_but_can_be_afterwards(
    alone: "subprocess.CompletedProcess[str]",
) -> None:
    assert json.loads(alone.stdout)[0] is True


def test_the_ids_are_those_that_come_with_torch(alone: "subprocess.CompletedProcess[str]") -> None:
    opened = tokenizer.load(demo.CHECKPOINT)
    chat = opened.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=True, return_dict=False)
    assert json.loads(alone.stdout)[1:] == [opened.encode(TEXT), list(chat)]


def test_no_advice_about_a_missing_torch_is_printed(alone: "subprocess.CompletedProcess[str]") -> None:
    assert "PyTorch" not in alone.stderr
