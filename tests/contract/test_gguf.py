"""The GGUF backend against the real llama.cpp: what it builds, reads back and scores."""

import json
import pydoc_data.topics
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from evals.runner import Ids
from evals.windows import Windows
from pipeline.backends.gguf import ids, library, source, tokenizer
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.gguf.build import notes
from pipeline.compute import Compute
from pipeline.errors import BuildError, MeasurementError, RequirementError
from pipeline.toolchains import llama_cpp
from pipeline.toolchains.llama_cpp import LlamaCpp

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WINDOW = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A small checkpoint with calibration windows, as the stages would hand them over."""

    checkpoint: Path
    corpus: Path
    windows: Ids
    """int32 [windows, tokens], not among the calibration windows."""
    text: str
    sentencepiece: Any


@pytest.fixture(scope="module")
def toolchain() -> LlamaCpp:
    try:
        return llama_cpp.find()
    except RequirementError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(toolchain: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random Llama, wide enough for K-quants, whose large weights make its predictions far from uniform."""
    import sentencepiece
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    checkpoint, corpus = folder / "checkpoint", folder / "corpus"
    checkpoint.mkdir()
    corpus.mkdir()
    topics = [str(topic) for topic in pydoc_data.topics.topics.values()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(topics[:20]).splitlines()), model_prefix=str(checkpoint / "tokenizer"),
        vocab_size=512, model_type="bpe", byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    (checkpoint / "tokenizer.vocab").unlink()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **special}))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.06, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(checkpoint)
    pieces = cast(Any, sentencepiece).SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    tokens = np.array(pieces.encode("\n".join(topics[20:])), np.int32)
    windows = np.full((20, WINDOW), 1, np.int32)
    windows[:, 1:] = tokens[: 20 * (WINDOW - 1)].reshape(20, -1)
    calibration = windows[:12]
    Windows(ids=calibration, document=np.arange(12, dtype=np.int32), utf8_bytes=np.full(12, 300, np.int64)).save(
        corpus / "calibration.npz"
    )
    text = topics[21]
    return Model(checkpoint=checkpoint, corpus=corpus, windows=windows[12:], text=text, sentencepiece=pieces)


@pytest.fixture(scope="module")
def artifacts(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One artifact of each of three types, built as siblings from one cache."""
    root = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        built = {}
        for quantization in ("F16", "Q8_0", "Q4_K_M"):
            built[quantization] = root / "artifacts" / quantization
            built[quantization].mkdir(parents=True)
            recipe(quantization).build(model.checkpoint, model.corpus, built[quantization], Compute(threads=2))
        yield built


def recipe(quantization: str) -> Gguf:
    return Gguf.model_validate({"backend": "gguf", "quantization": quantization})


def test_a_weight_beyond_float16_is_named(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolchain: LlamaCpp
) -> None:
    """A file with infinities must not come out, also where it is the embedding of a token that no text has."""
    checkpoint = shutil.copytree(model.checkpoint, tmp_path / "checkpoint")
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    tensors["model.embed_tokens.weight"][3, 5] = -1e5
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.chdir(tmp_path)
    for quantization in ("F16", "Q8_0", "BF16"):
        out = tmp_path / quantization
        out.mkdir()
        if quantization == "F16":
            with pytest.raises(BuildError, match=r"F16 cannot hold token_embd.weight, whose largest value is 100000: "):
                recipe(quantization).build(checkpoint, model.corpus, out, Compute(threads=2))
        else:
            recipe(quantization).build(checkpoint, model.corpus, out, Compute(threads=2))


def reference(model: Model) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(model.checkpoint, dtype=torch.float32)


def token_nll(logits: np.ndarray[Any, Any], targets: Ids) -> np.ndarray[Any, Any]:
    log_probabilities = torch.log_softmax(torch.from_numpy(np.array(logits)), dim=-1)
    return -log_probabilities[torch.arange(len(targets)), torch.from_numpy(targets.astype(np.int64))].numpy()


def score(artifact: Path, quantization: str, windows: Ids) -> np.ndarray[Any, Any]:
    with recipe(quantization).open(artifact, Compute(threads=2)) as runner:
        return np.array([token_nll(np.concatenate([b.copy() for b in runner.logits(w)]), w[1:]) for w in windows])


@pytest.mark.parametrize("quantization", ["F16", "Q4_K_M"])
def test_a_second_build_elsewhere_gives_the_same_bytes(
    quantization: str, model: Model, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pins: the folder's name, paths of scratch files and the order of threads must not get into the file."""
    moved = tmp_path / "another-name"
    shutil.copytree(model.checkpoint, moved)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    recipe(quantization).build(moved, model.corpus, out, Compute(threads=2))
    name = recipe(quantization).file_name
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_bytes() == (artifacts[quantization] / name).read_bytes()


def test_no_path_gets_into_the_metadata(artifacts: dict[str, Path]) -> None:
    reader = GGUFReader(artifacts["Q4_K_M"] / "model-Q4_K_M.gguf")
    texts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    assert not [name for name, value in texts.items() if isinstance(value, str) and "/" in value]
    assert texts["quantize.imatrix.file"] == "imatrix.gguf"
    assert texts["quantize.imatrix.chunks_count"] == 12


def test_f16_scores_as_the_source_does(model: Model, artifacts: dict[str, Path]) -> None:
    """The F16 file holds the same numbers; what is left is llama.cpp's rounding of activations."""
    with torch.inference_mode():
        logits = reference(model)(torch.from_numpy(model.windows.astype(np.int64))).logits
    expected = np.array([token_nll(row[:-1].numpy(), w[1:]) for row, w in zip(logits, model.windows, strict=True)])
    found = score(artifacts["F16"], "F16", model.windows)
    assert expected.std() > 0.5
    assert abs(found.mean() - expected.mean()) < 1e-3
    assert np.abs(found - expected).max() < 0.05


def test_fewer_bits_are_further_from_the_source(model: Model, artifacts: dict[str, Path]) -> None:
    exact = score(artifacts["F16"], "F16", model.windows)
    eight = np.abs(score(artifacts["Q8_0"], "Q8_0", model.windows) - exact).mean()
    four = np.abs(score(artifacts["Q4_K_M"], "Q4_K_M", model.windows) - exact).mean()
    assert 0 < eight < four / 3


def test_greedy_tokens_are_those_of_transformers(model: Model, artifacts: dict[str, Path]) -> None:
    prompt = model.windows[0][:40]
    with torch.inference_mode():
        expected = reference(model).generate(
            torch.from_numpy(prompt.astype(np.int64))[None], max_new_tokens=12, do_sample=False, eos_token_id=None
        )[0, 40:]
    with recipe("F16").open(artifacts["F16"], Compute(threads=2)) as runner:
        first = list(runner.generate(prompt, 12))
        again = list(runner.generate(prompt, 12))
    assert first == expected.tolist()
    assert again == first


def test_a_window_longer_than_a_batch_scores_the_same(model: Model, artifacts: dict[str, Path]) -> None:
    """Pins positions and cache across the 512-token steps: every row equals the row of a shorter window."""
    long = np.concatenate([model.windows[0], *(window[1:] for window in model.windows[1:6])])[:700]
    with recipe("F16").open(artifacts["F16"], Compute(threads=2)) as runner:
        rows = np.concatenate([block.copy() for block in runner.logits(long)])
        short = np.concatenate([block.copy() for block in runner.logits(long[:400])])
        tail = next(iter(runner.generate(long, 1)))
    assert rows.shape == (699, 512)
    assert np.abs(rows[:399] - short).max() < 1e-2
    with torch.inference_mode():
        expected = reference(model)(torch.from_numpy(long.astype(np.int64))[None]).logits[0].numpy()
    found, wanted = token_nll(rows[510:], long[511:]), token_nll(expected[510:-1], long[511:])
    assert abs(found.mean() - wanted.mean()) < 2e-3
    assert tail == expected[-1].argmax()


def test_a_window_beyond_the_models_context_is_refused(model: Model, artifacts: dict[str, Path]) -> None:
    long = np.resize(model.windows[0], 1026)
    with (
        recipe("F16").open(artifacts["F16"], Compute(threads=2)) as runner,
        pytest.raises(MeasurementError, match="1025 tokens asked for, the model was made for 1024"),
    ):
        next(iter(runner.logits(long)))


def test_a_truncated_file_is_refused(artifacts: dict[str, Path], model: Model, tmp_path: Path) -> None:
    whole = (artifacts["Q8_0"] / "model-Q8_0.gguf").read_bytes()
    (tmp_path / "model-Q8_0.gguf").write_bytes(whole[: len(whole) * 3 // 4])
    with (
        pytest.raises(MeasurementError, match=r"model-Q8_0.gguf: llama.cpp cannot load it: .*not within the file"),
        recipe("Q8_0").open(tmp_path, Compute(threads=1)),
    ):
        pass
    with pytest.raises(BuildError, match="cannot be read back"), recipe("Q8_0").inspect(tmp_path, model.checkpoint):
        pass


@pytest.mark.parametrize(("quantization", "tolerance"), [("F16", 1e-6), ("Q8_0", 0.01), ("Q4_K_M", 0.1)])
def test_contents_give_the_checkpoint_back(
    quantization: str, tolerance: float, model: Model, artifacts: dict[str, Path]
) -> None:
    """Embedding rows come back within the type's rounding, which also pins shape and order of the read-back."""
    from safetensors.torch import load_file

    weights = load_file(model.checkpoint / "model.safetensors")
    expected = weights["model.embed_tokens.weight"].float().numpy()
    with recipe(quantization).inspect(artifacts[quantization], model.checkpoint) as contents:
        low, high = contents.expected_bits_per_weight
        assert low <= contents.bits_per_weight <= high
        assert high / low < 1.05
        tensors = {tensor.name: tensor.values for tensor in contents.tensors}
        assert contents.tokenizer.encode(model.text) == model.sentencepiece.encode(model.text)
        assert contents.tokenizer.encode("<s>")[0] == 1
        assert contents.tokenizer.vocabulary_size == 512
        assert contents.tokenizer.special_ids == {"bos": 1, "eos": 2}
        assert contents.tokenizer.chat_template == TEMPLATE
    assert len(tensors) == 2 * 9 + 3
    error = np.abs(tensors["token_embd.weight"] - expected).max() / np.abs(expected).max()
    assert error <= tolerance


def test_a_tokenizer_that_crashes_is_an_error(
    model: Model, artifacts: dict[str, Path], toolchain: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp aborts the process on a character that is neither in the vocabulary nor expressible in bytes."""
    monkeypatch.chdir(artifacts["F16"].parents[1])
    with source.converted(toolchain, model.checkpoint) as folder:
        ids.write_header(folder / source.HEADER, tmp_path / source.HEADER)
        (tmp_path / source.TENSORS).symlink_to(folder / source.TENSORS)
    with (
        tokenizer.encoder(tmp_path / source.HEADER) as encode,
        pytest.raises(BuildError, match="crashes on 'plain text'"),
    ):
        encode("plain text")


def test_a_file_of_the_wrong_type_is_outside_the_expected_bits(
    model: Model, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """Pins that the expectation comes from recipe and shapes, not from the types found in the file."""
    shutil.copy(artifacts["Q8_0"] / "model-Q8_0.gguf", tmp_path / "model-Q4_K_M.gguf")
    with recipe("Q4_K_M").inspect(tmp_path, model.checkpoint) as contents:
        assert contents.bits_per_weight > 1.3 * contents.expected_bits_per_weight[1]


def test_every_sequence_of_ids_survives_as_text(
    model: Model, artifacts: dict[str, Path], toolchain: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Special tokens, byte tokens, spaces at window starts: ids that no text of the real tokenizer would give."""
    monkeypatch.chdir(artifacts["F16"].parents[1])
    sequence = np.random.default_rng(0).integers(0, 512, 5000, dtype=np.int32)
    with source.converted(toolchain, model.checkpoint) as folder:
        ids.write_header(folder / source.HEADER, tmp_path / source.HEADER)
        (tmp_path / source.TENSORS).symlink_to(folder / source.TENSORS)
    with library.model(tmp_path / source.HEADER, vocabulary_only=True) as loaded:
        assert library.tokenize(loaded, ids.as_text(sequence)).tolist() == sequence.tolist()


def test_importance_is_that_of_the_windows(
    model: Model, artifacts: dict[str, Path], toolchain: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer's input is the normed embedding: its summed squares can be computed from the ids alone."""
    from safetensors.torch import load_file

    monkeypatch.chdir(artifacts["F16"].parents[1])
    with source.converted(toolchain, model.checkpoint) as folder:
        reader = GGUFReader(source.importance(toolchain, folder, model.corpus, Compute(threads=2)))
    found = {tensor.name: tensor.data for tensor in reader.tensors}["blk.0.attn_q.weight.in_sum2"].ravel()
    windows = Windows.load(model.corpus / "calibration.npz").ids
    embedding = load_file(model.checkpoint / "model.safetensors")["model.embed_tokens.weight"].float().numpy()
    rows = embedding[windows.ravel()].astype(np.float64)
    expected = (rows**2 / ((rows**2).mean(axis=1, keepdims=True) + 1e-6)).sum(axis=0)
    assert np.abs(found / expected - 1).max() < 1e-3


def test_refusals_name_the_architecture(toolchain: LlamaCpp) -> None:
    gguf = recipe("F16")
    assert gguf.refusal({"architectures": ["LlamaForCausalLM"]}) is None
    assert "NoSuchForCausalLM" in (gguf.refusal({"architectures": ["NoSuchForCausalLM"]}) or "")
    assert "BertModel" in (gguf.refusal({"architectures": ["BertModel"]}) or "")
    assert "vision" in (gguf.refusal({"architectures": ["Gemma3ForCausalLM"], "vision_config": {}}) or "")
    gemma = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    published = ["sliding_attention"] * 5 + ["full_attention"]
    assert gguf.refusal(gemma | {"layer_types": published * 2}) is None
    assert "every sixth" in (gguf.refusal(gemma | {"layer_types": published[::-1]}) or "")
    assert "every sixth" in (gguf.refusal(gemma | {"sliding_window_pattern": 2}) or "")


def test_fallbacks_are_told() -> None:
    output = """warning: blk.0.attn_k.weight  - ncols    128 not divisible by 256 (required for type    q4_K) -> falling back to    q5_0
warning: blk.1.attn_v.weight  - ncols    128 not divisible by 256 (required for type    q6_K) -> falling back to    q8_0
====== llama_model_quantize_impl: did not find weights for token_embd.weight
llama_model_quantize_impl: WARNING: 2 of 20 tensor(s) required fallback quantization
"""  # noqa: E501
    (note,) = notes(output)
    assert note.startswith("2 of 20 tensors fell back")
    assert "1 from q4_K to q5_0, 1 from q6_K to q8_0" in note
