"""Prompts for timing, cut out of a text."""

import numpy as np

from evals.runner import Ids
from pipeline.errors import ParamsError


def pieces(text: Ids, count: int, tokens: int, key: str) -> list[Ids]:
    """Take `count` pieces of a text, no two beginning at one place, so that no server knows a prompt's beginning.

    They overlap where the text is short. ParamsError naming `key` where it is too short even for that.
    """
    if len(text) < tokens + count - 1:
        raise ParamsError(
            f"{key}: {tokens}, but the evaluation windows' {len(text)} tokens do not hold {count} different such pieces"
        )
    starts = np.linspace(0, len(text) - tokens, count).astype(int)
    return [text[start : start + tokens] for start in starts]
