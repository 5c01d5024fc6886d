"""Train the demo checkpoint: a small Llama that runs the whole pipeline in minutes, offline, on two CPU cores.

Run from the root of the repository::

    python -m models.demo.train                           # makes the checkpoint in models/demo again
    python -m models.demo.train --steps 20 --out OTHER    # a quick look, in another folder

Why train one at all: quantization can only be judged on weights which have learnt something.  Random weights have
no structure to lose, so every method would look equally good on them.  The text is the training split of
``pipeline.texts.stdlib``, about 2 MB of documentation which every CPython carries, so nothing is downloaded.

Sizes: 6 layers, hidden width 256, feed-forward width 768, 4 query heads and 2 key/value heads of 64, vocabulary
4096, input and output embeddings apart: 6.8 M parameters, 13.6 MB in bfloat16.  Every row length is a multiple of
256, the superblock of llama.cpp's K-quants; other lengths would fall back to other formats without a word.

Cost: 2500 steps of 2048 tokens, 5.1 million tokens, took 22 minutes on one thread (``--threads 1``) of a busy server
CPU with AVX-512 bfloat16, at about 4500 tokens for each second of processor time.  Threads that wait for each other
lose more than they gain where other programs run, so two are worth it on an idle machine only.

The same seed gives the same tokenizer, the same windows and the same initial weights anywhere with the same CPython;
the trained weights agree only as far as the arithmetic of the processor and the version of PyTorch do.
"""

import argparse
import io
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from pipeline.texts.stdlib import documents

HERE: Final = Path(__file__).resolve().parent
CHAT_TEMPLATE: Final = HERE / "chat_template.jinja"

SEED: Final = 20240229
VOCABULARY: Final = 4096
UNK, BOS, EOS = 0, 1, 2
WINDOW: Final = 512
"""Tokens of one training row: ``<s>`` and 511 tokens of text, as the evaluation windows have."""

BATCH: Final = 4
"""Rows of one step. Small, since there is little text and each step of the optimiser costs almost nothing."""

STEPS: Final = 2500
PEAK_LEARNING_RATE: Final = 3e-3
FINAL_LEARNING_RATE: Final = 1e-4
WARM_UP_STEPS: Final = 100
WEIGHT_DECAY: Final = 0.01
GRADIENT_NORM: Final = 1.0
EVALUATE_EVERY: Final = 250
STATE_EVERY: Final = 100
SHARD_SIZE: Final = "7MB"

_METASPACE: Final = "▁"

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Tokenized text, one array of ids for each document, without ``<s>``."""

    training: list[Ids]
    evaluation: list[Ids]


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


def chats() -> Iterator[str]:
    """Yield short dialogues in the format of ``chat_template.jinja``, made from the training split.

    They teach the format, and where an answer ends, rather than any skill: a model this small knows nothing.
    """
    for document in documents("training"):
        kind, _, name = document.name.partition(":")
        paragraphs = [part.strip() for part in document.text.split("\n\n") if len(part.strip()) >= 40]
        if not paragraphs:
            continue
        question = f"What is the module {name} for?" if kind == "module" else f"Explain the topic {name} of Python."
        answer = paragraphs[1] if kind == "topic" and len(paragraphs) > 1 else paragraphs[0]
        yield f"[INST] {question} [/INST] {answer}"


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer
# ---------------------------------------------------------------------------------------------------------------------


def train_tokenizer(out: Path) -> sentencepiece.SentencePieceProcessor:
    """Train the SentencePiece model much as Llama 2's was and write ``tokenizer.model`` into ``out``.

    Nothing may be normalised away: a perplexity counts the tokens of the text as it stands, line breaks and
    indentation included.  Characters outside the vocabulary become bytes, so no text is ever unknown.

    Unlike Llama 2's it has no pieces for runs of spaces.  onnxruntime's tokenizer cuts the text before each word,
    its space included, and merges within the cuts only, so "two  spaces" would get other ids there than here.
    """
    lines = [line for document in documents("training") for line in document.text.split("\n") if line]
    lines += [line for chat in chats() for line in chat.split("\n") if line]
    # Into memory, since the model records the name of a file it is written to, and that name is temporary.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=False,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        unk_surface=" ⁇ ",
        # One thread, so that ties between pieces of equal frequency always fall the same way.
        num_threads=1,
        minloglevel=2,
    )
    (out / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def fast_tokenizer(processor: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """Express the SentencePiece model as a ``tokenizers`` model which gives the same ids.

    SentencePiece stores a score for each piece, the rank of the merge that made it, whereas ``tokenizers`` wants the
    pairs: all ways to cut a piece into two others, in the order of the scores.
    """
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # The control pieces and the 256 bytes come first and take no part in merges.
    mergeable = [piece for index, piece in enumerate(pieces) if index > EOS and not processor.is_byte(index)]
    known = set(mergeable)
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(mergeable, key=lambda piece: vocabulary[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=pieces[UNK], byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_METASPACE), normalizers.Replace(" ", _METASPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_METASPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(pieces[index], normalized=False) for index in (UNK, BOS, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def write_tokenizer(out: Path) -> sentencepiece.SentencePieceProcessor:
    """Train the tokenizer and write all its files into ``out``: SentencePiece's, transformers' and the template."""
    processor = train_tokenizer(out)
    fast_tokenizer(processor).save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "legacy": True,
        "clean_up_tokenization_spaces": False,
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    return processor


# ---------------------------------------------------------------------------------------------------------------------
# Windows
# ---------------------------------------------------------------------------------------------------------------------


def tokenize(processor: sentencepiece.SentencePieceProcessor) -> Corpus:
    """Tokenize both splits; a training document ends with ``</s>``, so that the model learns to stop."""
    texts = [document.text for document in documents("training")]
    training = [np.array([*processor.encode(text), EOS], np.int64) for text in [*texts, *chats()]]
    evaluation = [np.array(processor.encode(document.text), np.int64) for document in documents("evaluation")]
    return Corpus(training=training, evaluation=evaluation)


def evaluation_rows(texts: Sequence[Ids]) -> torch.Tensor:
    """Cut documents into rows of ``<s>`` and 511 tokens, shape (rows, 512); the tail of each document is dropped."""
    body = WINDOW - 1
    rows = [text[start : start + body] for text in texts for start in range(0, len(text) - body + 1, body)]
    return torch.tensor(np.stack([np.concatenate([[BOS], row]) for row in rows]))


def training_rows(texts: Sequence[Ids], rows: int) -> torch.Tensor:
    """Return all rows of a training run in their order, shape (rows, 512), as many epochs as that takes.

    Each epoch cuts every document at another phase, so that a token meets different contexts, and each piece starts
    with ``<s>`` as the evaluation windows do.  What is shorter than a row is strung together, still with ``<s>``
    between.
    """
    generator = np.random.default_rng(SEED)
    body = WINDOW - 1
    epochs: list[Ids] = []
    while sum(map(len, epochs)) < rows:
        whole: list[Ids] = []
        short: list[Ids] = []
        for index in generator.permutation(len(texts)):
            phase = int(generator.integers(body))
            text = texts[index]
            cuts = [0, *range(phase or body, len(text), body), len(text)]
            for piece in (text[start:end] for start, end in pairwise(cuts)):
                (whole if len(piece) == body else short).append(np.concatenate([[BOS], piece]))
        strung = np.concatenate(short)
        packed = strung[: len(strung) // WINDOW * WINDOW].reshape(-1, WINDOW)
        epochs.append(generator.permutation(np.concatenate([np.stack(whole), packed])))
    return torch.tensor(np.concatenate(epochs)[:rows])


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


def configuration() -> LlamaConfig:
    """Return the shape of the model; see the top of this file for the reasons."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=None,
        dtype="bfloat16",
    )


def loss_of(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood (nats a token) of positions 1..511 of rows of shape (batch, 512)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Return the mean negative log-likelihood (nats a token) over all evaluation rows."""
    model.eval()
    losses = [loss_of(model, batch).item() * len(batch) for batch in torch.split(rows, BATCH)]
    model.train()
    return sum(losses) / len(rows)


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate at a step: a linear warm-up, then half a cosine down to the final rate."""
    if step < WARM_UP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return FINAL_LEARNING_RATE + (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * progress)) / 2


def optimiser_for(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Return AdamW; norm gains (vectors) are spared the decay, which would only pull them away from one."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def train(corpus: Corpus, steps: int, state: Path | None) -> LlamaForCausalLM:
    """Train for a fixed number of steps; with ``state``, save there now and then, and go on from what is there."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM._from_config(configuration(), attn_implementation="eager", dtype=torch.float32)
    optimiser = optimiser_for(model)
    first = 0
    if state is not None and state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    rows = training_rows(corpus.training, steps * BATCH)
    held_out = evaluation_rows(corpus.evaluation)
    model.train()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=steps, completed=first)
        for step in range(first, steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps)
            loss = loss_of(model, rows[step * BATCH : (step + 1) * BATCH])
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimiser.step()
            optimiser.zero_grad()
            done = step + 1
            progress.update(task, completed=done, description=f"training, loss {loss.item():.3f}")
            if done % EVALUATE_EVERY == 0 or done == steps:
                value = evaluate(model, held_out)
                progress.console.print(f"step {done}: held-out {value:.4f} nats, perplexity {math.exp(value):.2f}")
            if state is not None and done % STATE_EVERY == 0:
                save_state(state, model, optimiser, done)
    return model


def save_state(path: Path, model: LlamaForCausalLM, optimiser: torch.optim.AdamW, step: int) -> None:
    """Write all that a killed run needs to go on, in one rename, so that a kill while writing loses nothing."""
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, partial)
    partial.replace(path)


# ---------------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------------


def write_model(model: LlamaForCausalLM, out: Path) -> None:
    """Write the weights as bfloat16, in shards with an index, and the two configurations."""
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=128
    )
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)


def publish(source: Path, out: Path) -> None:
    """Move finished files into place, the index last: until then a reader finds the older set or a broken one.

    The folder itself cannot be swapped, since it also holds this recipe and the model card.
    """
    for path in sorted(source.iterdir(), key=lambda path: (path.name.endswith(".index.json"), path.name)):
        # Some writers make files which only their owner may read.
        path.chmod(0o644)
        path.replace(out / path.name)


def main() -> None:
    """Train tokenizer and model, and put the checkpoint in place once both are complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the checkpoint (default: this one)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the optimiser (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: %(default)s)")
    parser.add_argument("--state", type=Path, help="file to keep the state of the training in, and to go on from")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    # Below the target, so that the moves at the end stay within one file system and are atomic.
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".partial-") as partial:
        files = Path(partial)
        processor = write_tokenizer(files)
        write_model(train(tokenize(processor), options.steps, options.state), files)
        publish(files, options.out)


if __name__ == "__main__":
    main()
