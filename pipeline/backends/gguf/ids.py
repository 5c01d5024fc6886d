"""Feeding token ids to llama-imatrix, which reads text only.

A second header for the same weights gets a vocabulary of our own: token i is the one character U+10000 + i, of plain
type, with no merges, no added space, no BOS and no EOS. Any sequence of ids is then a text that can only be tokenized
back into those ids, for every kind of tokenizer, and a file of windows falls into llama-imatrix's chunks exactly, with
no token replaced. The weights never see the difference. `source.importance` checks this each time, through the
library's own tokenizer, before it computes.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from evals.runner import Ids

FIRST_CHARACTER = 0x10000
"""First code point above the surrogates and specials; 1,048,576 follow, more than any vocabulary has."""


def as_text(ids: Ids) -> str:
    """Return the text that tokenizes into these ids under the vocabulary of `write_header`."""
    return (ids.ravel().astype(np.uint32) + FIRST_CHARACTER).astype("<u4").tobytes().decode("utf-32-le")


def write_header(original: Path, copy: Path) -> None:
    """Copy the first of two GGUF shards, the one without tensors, under the vocabulary described above."""
    reader = GGUFReader(original)
    tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer = GGUFWriter(copy, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        # llama.cpp looks for tokens such as <|endoftext|> in every vocabulary of a model whose *name* holds "phi-3".
        if name.startswith(("GGUF.", "tokenizer.")) or name in ("general.architecture", "general.name"):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([chr(FIRST_CHARACTER + token) for token in range(tokens)])
    writer.add_token_scores([0.0] * tokens)
    writer.add_token_types([1] * tokens)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
