"""Tokenizers for small checkpoints, in the files that published models of each family carry.

Byte-level vocabularies are the real ones, from the `ggml-vocab-*.gguf` files of the llama.cpp sources: the GGUF
converter recognises a pre-tokenizer by a hash of the ids it gives, so an invented one would be refused. SentencePiece
vocabularies are trained here on the language reference that every CPython carries; 0.2 seconds.
"""

import io
import json
import pydoc_data.topics
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gguf import GGUFValueType, TokenType
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

PRE_TOKENIZERS: Mapping[str, Callable[[], list[Any]]] = {
    "llama-bpe": lambda: [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": lambda: [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "falcon": lambda: [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ],
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "refact": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """The special tokens of a family, and how it frames a chat."""

    bos: str | None
    eos: str
    pad: str | None = None
    unk: str | None = None
    adds_bos: bool
    tokenizer_class: str
    chat_template: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteLevel:
    """A real byte-level BPE vocabulary."""

    vocabulary: str
    """The part of `ggml-vocab-<vocabulary>.gguf` that names it."""
    special: Special
    ignore_merges: bool = False
    """Llama 3: a word that is a token of its own is taken whole, whatever the merges say."""
    normalizer: Callable[[], Any] | None = None

    def write(self, folder: Path, vocabularies: Path) -> int:
        """Write tokenizer.json and tokenizer_config.json; return the number of embedding rows."""
        metadata = _read_metadata(vocabularies / f"ggml-vocab-{self.vocabulary}.gguf")
        tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        types: list[int] = metadata["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        ordinary = max(i for i, kind in enumerate(types) if kind == TokenType.NORMAL)
        special = [
            token
            for token, kind in zip(tokens, types, strict=True)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and not token.startswith("[PAD")
        ]
        # Special tokens before the last ordinary one are part of the model's own vocabulary, later ones are added.
        tokenizer = Tokenizer(
            BPE({token: i for i, token in enumerate(tokens[: ordinary + 1])}, merges, ignore_merges=self.ignore_merges)
        )
        if self.normalizer is not None:
            tokenizer.normalizer = self.normalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[self.vocabulary]())
        tokenizer.decoder = decoders.ByteLevel()
        _finish(tokenizer, special, self.special, folder)
        return len(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePiece:
    """A trained SentencePiece BPE vocabulary with byte fallback: tokenizer.model, and tokenizer.json made from it."""

    special: Special
    control: Mapping[str, int | str]
    """Ids and names of bos, eos, unk and pad, in SentencePieceTrainer's words (`bos_id`); id -1 for none."""
    prefix_space: bool = True
    """Llama puts a space before the text, Gemma does not."""
    symbols: tuple[str, ...] = ()
    """User-defined pieces inside tokenizer.model, as Gemma's turn marks."""
    added: tuple[str, ...] = ()
    """Tokens behind the ones in tokenizer.model, as Phi-3's chat marks."""
    pieces: int = 1024
    rows: int = 1024
    """Embedding rows; more than there are tokens where the family pads its vocabulary."""

    def write(self, folder: Path, vocabularies: Path) -> int:
        """Write tokenizer.model, tokenizer.json and tokenizer_config.json; return the number of embedding rows."""
        model = self._train()
        (folder / "tokenizer.model").write_bytes(model)
        source = SentencePieceProcessor(model_proto=model)
        pieces = {source.id_to_piece(i): i for i in range(source.get_piece_size())}
        special = [piece for piece, i in pieces.items() if source.is_control(i) or source.is_unknown(i)]
        words = [
            piece for piece, i in pieces.items() if not source.is_byte(i) and piece not in (*special, *self.symbols)
        ]
        # Pieces come in the order of their scores; of the ways to put one together, the best-scored parts come first.
        merges = [
            (word[:cut], word[cut:])
            for word in words
            for cut in sorted(range(1, len(word)), key=lambda cut: _rank(pieces, word, cut))
            if word[:cut] in pieces and word[cut:] in pieces
        ]
        tokenizer = Tokenizer(BPE(pieces, merges, unk_token=self.special.unk, fuse_unk=True, byte_fallback=True))
        prepend = [normalizers.Prepend("▁")] if self.prefix_space else []
        tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if self.prefix_space else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        _finish(tokenizer, [*special, *self.symbols, *self.added], self.special, folder)
        if self.added:
            ids = {token: tokenizer.token_to_id(token) for token in self.added}
            (folder / "added_tokens.json").write_text(json.dumps(ids, indent=2), encoding="utf-8")
        return self.rows

    def _train(self) -> bytes:
        topics: dict[str, str] = pydoc_data.topics.topics
        lines = (line for key in sorted(topics) for line in topics[key].splitlines())
        stream = io.BytesIO()
        cast(Any, SentencePieceTrainer).train(
            sentence_iterator=lines,
            model_writer=stream,
            model_type="bpe",
            vocab_size=self.pieces,
            byte_fallback=True,
            split_digits=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=self.prefix_space,
            user_defined_symbols=list(self.symbols),
            num_threads=1,
            minloglevel=2,
            **self.control,
        )
        return stream.getvalue()


def _rank(pieces: Mapping[str, int], word: str, cut: int) -> tuple[int, int]:
    return pieces.get(word[:cut], 0), pieces.get(word[cut:], 0)


def _finish(tokenizer: Tokenizer, added: list[str], special: Special, folder: Path) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    if special.adds_bos and special.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special.bos} $A",
            pair=f"{special.bos} $A {special.bos}:1 $B:1",
            special_tokens=[(special.bos, tokenizer.token_to_id(special.bos))],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": special.tokenizer_class,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in added
        },
        "bos_token": special.bos,
        "eos_token": special.eos,
        "pad_token": special.pad,
        "unk_token": special.unk,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    if special.tokenizer_class in ("LlamaTokenizer", "GemmaTokenizer"):
        config |= {"add_bos_token": special.adds_bos, "add_eos_token": False}
    if special.chat_template is not None:
        config["chat_template"] = special.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


NUMBERS: Mapping[int, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def _read_metadata(path: Path) -> dict[str, Any]:
    """Read the keys and values of a GGUF file: 0.3 seconds, where gguf.GGUFReader takes 10 on 150,000 tokens."""
    data = path.read_bytes()
    magic, version, _, keys = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3), f"{path} is no GGUF file of version 3"
    at = 24

    def text() -> str:
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        return data[at - length : at].decode("utf-8")

    def value(kind: int) -> Any:
        nonlocal at
        if kind == GGUFValueType.STRING:
            return text()
        if kind == GGUFValueType.ARRAY:
            item, count = struct.unpack_from("<IQ", data, at)
            at += 12
            return [value(item) for _ in range(count)]
        (number,) = struct.unpack_from("<" + NUMBERS[kind], data, at)
        at += struct.calcsize("<" + NUMBERS[kind])
        return number

    metadata = {}
    for _ in range(keys):
        key = text()
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        metadata[key] = value(kind)
    return metadata
