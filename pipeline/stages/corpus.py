"""Texts become windows of token ids, once, by the checkpoint's own tokenizer; every runtime is fed these ids."""

from functools import partial
from typing import Any

import numpy as np

from evals.windows import Windows
from pipeline import digests, outputs, paths
from pipeline.backends.common import hf_tokenizer
from pipeline.checkpoints import link
from pipeline.errors import CorpusError
from pipeline.params import Params, TextParams
from pipeline.progress import track
from pipeline.records import FILE, Checkpoint, Corpus, Split
from pipeline.texts import cloze, cut, files, read
from pipeline.texts.chats import Conversation

SAMPLES = 8
SAMPLE_CHARACTERS = 2000


def corpus(params: Params) -> None:
    """Fill corpus/: calibration.npz and evaluation.npz (evals.windows.Windows), cloze.jsonl, vocabulary.json."""
    checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
    length = params.corpus.window_tokens
    if length > checkpoint.context_tokens:
        raise CorpusError(
            f"corpus.window_tokens: {length} is longer than the checkpoint's context of {checkpoint.context_tokens}"
        )
    tokenizer = hf_tokenizer.load(link.ensure(checkpoint, params.checkpoint.source, paths.CHECKPOINT))
    render = partial(_render, tokenizer, params.checkpoint.source)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    with outputs.folder(paths.CORPUS) as out:
        sources: dict[str, read.Texts] = {}
        splits: dict[str, tuple[Windows, Split]] = {}
        for name, text in (("calibration", params.corpus.calibration), ("evaluation", params.corpus.evaluation)):
            sources[name] = read.read(text.source, text.revision, render)
            splits[name] = _split(name, text, sources[name], tokenizer, prefix, length)
            splits[name][0].save(out / f"{name}.npz")
        texts = {name: [tokenizer.decode(ids) for ids in windows.ids] for name, (windows, _) in splits.items()}
        overlap = cut.overlap(texts["evaluation"], texts["calibration"])
        if overlap > params.corpus.max_overlap:
            raise CorpusError(
                f"corpus: {overlap:.2%} of the evaluation's runs of {cut.NGRAM} words also occur in calibration, and "
                f"corpus.max_overlap allows {params.corpus.max_overlap:.2%}; use texts that do not share documents"
            )
        lines = (item.model_dump_json() for item in cloze.items(sources["evaluation"].documents))
        (out / paths.CLOZE.name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        samples = _samples(tokenizer, splits["calibration"][0])
        hf_tokenizer.vocabulary(tokenizer, samples).save(out / "vocabulary.json")
        listed = digests.list_files(out)
        Corpus(
            checkpoint=checkpoint.digest,
            window_tokens=length,
            prefix_id=prefix,
            calibration=splits["calibration"][1],
            evaluation=splits["evaluation"][1],
            overlap=overlap,
            files=listed,
            digest=digests.of_files(listed),
        ).save(out / FILE)


def _split(
    name: str, text: TextParams, texts: read.Texts, tokenizer: Any, prefix: int | None, length: int
) -> tuple[Windows, Split]:
    encoded = [cut.encode(tokenizer, document) for document in track(texts.documents, f"tokenizing {name}")]
    windows, dropped = cut.windows(encoded, prefix, length, text.windows)
    if not len(windows):
        longest = max((len(document.ids) for document in encoded), default=0)
        raise CorpusError(
            f"corpus.{name}: {text.source} gives no window of {length} tokens: its longest document has {longest}; "
            "use a longer text or a smaller corpus.window_tokens"
        )
    return windows, Split(
        source=text.source,
        revision=texts.revision,
        documents=len(set(windows.document.tolist())),
        windows=len(windows),
        tokens=windows.ids.size,
        dropped_tokens=dropped,
        utf8_bytes=int(windows.utf8_bytes.sum()),
    )


def _render(tokenizer: Any, source: str, conversation: Conversation) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"holds a conversation, and the checkpoint {source} has no chat template to render it with; give the text "
            f"under {files.KEY!r}, or take another checkpoint"
        )
    return hf_tokenizer.conversation(tokenizer, conversation.messages, conversation.tools)


def _samples(tokenizer: Any, windows: Windows) -> list[str]:
    few = windows.ids[np.linspace(0, len(windows) - 1, min(SAMPLES, len(windows))).astype(int)]
    return [tokenizer.decode(ids, skip_special_tokens=True).lstrip()[:SAMPLE_CHARACTERS] for ids in few]
