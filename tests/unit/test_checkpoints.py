"""What is refused of a checkpoint, each damage made on purpose in a small one that is sound otherwise."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import digests
from pipeline.checkpoints.check import check
from pipeline.checkpoints.config import context_tokens, eos_ids, vocabulary_size
from pipeline.checkpoints.link import ensure, link
from pipeline.checkpoints.obtain import Obtained, obtain
from pipeline.checkpoints.weights import BLOCK_BYTES, read_header, read_through
from pipeline.errors import CheckpointError
from pipeline.records import Checkpoint
from tests.support import checkpoints
from tests.support.checkpoints import VOCABULARY, Tensors, numbers, safetensors

FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def _own_memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def anything(_: Mapping[str, Any]) -> dict[str, str | None]:
    return {"gguf-q8_0": None}


def checked(folder: Path, refusals: Callable[[Mapping[str, Any]], dict[str, str | None]] = anything) -> Checkpoint:
    return check(obtain(str(folder), None), "models/small", refusals)


def without(*names: str) -> Files:
    return {name: content for name, content in checkpoints.tree().items() if name not in names}


def last() -> Tensors:
    """The tensors of the second shard."""
    return {"model.norm.weight": numbers("F32", 256, seed=1), "lm_head.weight": numbers("BF16", VOCABULARY, 256)}


def test_a_sound_one(tmp_path: Path) -> None:
    tree = checkpoints.tree()
    record = checked(checkpoints.write(tmp_path / "small", tree))
    assert record.architecture == "LlamaForCausalLM"
    assert (record.vocabulary_size, record.context_tokens) == (VOCABULARY, 512)
    assert record.parameters == 2 * VOCABULARY * 256 + 256
    assert record.dtype == "bfloat16"
    assert record.weight_bytes == len(tree[FIRST]) + len(tree[SECOND])
    taken = {"config.json", "tokenizer.json", "tokenizer_config.json", FIRST, SECOND, INDEX}
    assert {file.path for file in record.files} == taken
    assert all(file.sha256 == digests.of_file(tmp_path / "small" / file.path) for file in record.files)


def test_the_digest_is_of_what_counts(tmp_path: Path) -> None:
    """A mended model card rebuilds nothing; a changed weight, tokenizer or config rebuilds everything."""
    first = checked(checkpoints.write(tmp_path / "a", checkpoints.tree()))
    card = checked(checkpoints.write(tmp_path / "b", checkpoints.tree(**{"README.md": b"# better"})))
    other = checked(
        checkpoints.write(tmp_path / "c", checkpoints.tree(**{"config.json": checkpoints.config(rope_theta=5.0)}))
    )
    assert card.digest == first.digest
    assert other.digest != first.digest


def test_context_from_the_architecture_where_config_is_silent(tmp_path: Path) -> None:
    tree = checkpoints.tree(**{"config.json": checkpoints.config(max_position_embeddings=None)})
    assert checked(checkpoints.write(tmp_path / "small", tree)).context_tokens == 2048


def test_nested_text_config(tmp_path: Path) -> None:
    config = {"text_config": {"vocab_size": VOCABULARY, "max_position_embeddings": 77}}
    assert vocabulary_size(config, "models/small") == VOCABULARY
    assert context_tokens(config, tmp_path, "models/small") == 77


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [3, 0]}, (3, 0, 2)),
        ({"eos_token_id": [2, 3]}, {"eos_token_id": 2}, (2, 3)),
        ({"eos_token_id": 2}, {"temperature": 0.6}, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": None}, (2,)),
        ({"text_config": {"eos_token_id": 0}}, None, (0,)),
        ({}, {}, ()),
    ],
)
def test_what_ends_an_answer(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, ends: tuple[int, ...]
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert eos_ids(config, tmp_path, "models/small") == ends


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without("config.json"), r"has no config\.json"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "it is an adapter"),
        (without(FIRST, SECOND, INDEX), r"only as pytorch_model\.bin, a pickle"),
        (without(FIRST, SECOND, INDEX, "pytorch_model.bin"), "has no weights"),
        (without(INDEX), "no model.safetensors.index.json that names all shards"),
        (checkpoints.tree(**{"model.safetensors": b""}), "has both"),
        (without(SECOND), rf"1 of 2 shards .* are missing, the first is {SECOND}"),
        (checkpoints.tree(**{"config.json": b"{"}), "config.json is not JSON"),
        (checkpoints.tree(**{"config.json": b"[]"}), "config.json holds list"),
        (checkpoints.tree(**{"config.json": checkpoints.config(auto_map={"AutoModel": "own.Own"})}), "has auto_map"),
        (checkpoints.tree(**{"tokenizer_config.json": b'{"auto_map": {}}'}), "tokenizer_config.json has auto_map"),
        (checkpoints.tree(**{"config.json": checkpoints.config(architectures=None)}), "names no architectures"),
        (checkpoints.tree(**{"config.json": checkpoints.config(vocab_size="32")}), "vocab_size is '32'"),
        (checkpoints.tree(**{"config.json": checkpoints.config(quantization_config={})}), "already quantized"),
        (
            checkpoints.tree(**{SECOND: safetensors({"lm_head.weight": numbers("BF16", VOCABULARY, 256)})}),
            "places tensor model.norm.weight in",
        ),
        (
            checkpoints.tree(**{SECOND: safetensors({**last(), "extra": numbers("BF16", 2)})}),
            "tensor extra is in model-00002-of-00002.safetensors, and model.safetensors.index.json does not name it",
        ),
        (
            checkpoints.tree(**{"config.json": checkpoints.config(vocab_size=40)}),
            r"embed_tokens.weight \[32, 256\], expected \[40, 256\]",
        ),
        (without("tokenizer.json"), "has no tokenizer"),
        (checkpoints.tree(**{"tokenizer.json": b"{}"}), "tokenizer cannot be opened"),
        (checkpoints.tree(**checkpoints.tokenizer(33)), "gives id 32 for 'w32', the vocabulary ends at 31"),
        (checkpoints.tree(**{INDEX: b"{}"}), "no weight_map"),
        (checkpoints.tree(**{INDEX: b'{"weight_map": {"a": "../x.safetensors"}}'}), "in the same folder"),
        (checkpoints.tree(**{INDEX: b'{"weight_map": {"a": "/x.safetensors"}}'}), "in the same folder"),
        (checkpoints.tree(**{INDEX: b'{"weight_map": {"a": "pytorch_model.bin"}}'}), r"expected a \.safetensors file"),
    ],
)
def test_refused(tmp_path: Path, files: Files, message: str) -> None:
    folder = checkpoints.write(tmp_path / "small", files)
    with pytest.raises(CheckpointError, match=message) as caught:
        checked(folder)
    assert "models/small" in str(caught.value)


def test_added_tokens_count(tmp_path: Path) -> None:
    """An added token beyond the embedding crashes runtimes at the first text that holds it, not before."""
    tokenizer = checkpoints.tokenizer()
    whole = json.loads(tokenizer["tokenizer.json"])
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole["added_tokens"] = [{"id": 99, "content": "<|im_start|>", "special": True, **token}]
    # Added tokens take the next free id, so ids up to 98 must be taken.
    whole["model"]["vocab"] = {f"w{n}": n for n in range(99)}
    tree = checkpoints.tree(**{**tokenizer, "tokenizer.json": json.dumps(whole).encode()})
    with pytest.raises(CheckpointError, match=r"gives id 99 for '<\|im_start\|>'"):
        checked(checkpoints.write(tmp_path / "small", tree))


def test_refused_by_every_wanted_artifact(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "small", checkpoints.tree())
    reasons: dict[str, str | None] = {"gguf-q8_0": "no converter", "onnx-int4": "no builder"}
    with pytest.raises(CheckpointError, match=r"(?s)LlamaForCausalLM.*gguf-q8_0: no converter.*onnx-int4: no builder"):
        checked(folder, lambda _: reasons)
    assert checked(folder, lambda _: {**reasons, "awq-4bit": None}).architecture == "LlamaForCausalLM"


def replaced(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert raw.count(old) == 1
    assert len(old) == len(new)
    return raw.replace(old, new)


NORM = safetensors({"model.norm.weight": numbers("F32", 256)})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (NORM[:-1], "truncated or damaged"),
        (NORM + b"\0", "truncated or damaged"),
        (NORM[:50], "promise a header of"),
        (NORM[:5], "promise a header of"),
        (b"", "promise a header of"),
        (b"\xff" * 8 + NORM[8:], "promise a header of"),
        (b"<!DOCTYPE html><html>", "promise a header of"),
        (replaced(NORM, b'"shape"', b'"shapo"'), "its header is damaged"),
        (replaced(NORM, b"[256]", b"[255]"), "needs another number"),
        (replaced(NORM, b'"F32"', b'"F99"'), "unknown dtype 'F99'"),
        (replaced(NORM, b"[0, 1024]", b"[8, 1032]"), r"begins at byte \d+, expected"),
        (replaced(NORM, b"}}", b"}]"), "its header is damaged"),
        (safetensors({}), "are missing|no shard has it|hold no tensor"),
    ],
)
def test_a_damaged_file_is_told_from_its_header_and_size(tmp_path: Path, raw: bytes, message: str) -> None:
    folder = checkpoints.write(tmp_path / "small", checkpoints.tree(**{SECOND: raw}))
    with pytest.raises(CheckpointError, match=message):
        checked(folder)


def test_a_tensor_twice_in_one_header(tmp_path: Path) -> None:
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CheckpointError, match="a is there twice"):
        read_header(path, "x")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    tree = checkpoints.tree()
    second = {"model.norm.weight": numbers("F32", 256), "model.embed_tokens.weight": numbers("BF16", VOCABULARY, 256)}
    tree[SECOND] = safetensors({**second, "lm_head.weight": numbers("BF16", VOCABULARY, 256)})
    with pytest.raises(CheckpointError, match=rf"model\.embed_tokens\.weight is in both {FIRST} and {SECOND}"):
        checked(checkpoints.write(tmp_path / "small", tree))


def test_an_index_of_another_version(tmp_path: Path) -> None:
    index = json.loads(checkpoints.tree()[INDEX])
    index["weight_map"] |= {"model.layers.0.extra.weight": FIRST}
    tree = checkpoints.tree(**{INDEX: json.dumps(index).encode()})
    with pytest.raises(CheckpointError, match=r"places tensor model\.layers\.0\.extra\.weight in .*no shard has it"):
        checked(checkpoints.write(tmp_path / "small", tree))
    index["weight_map"] = json.loads(checkpoints.tree()[INDEX])["weight_map"] | {"lm_head.weight": FIRST}
    tree = checkpoints.tree(**{INDEX: json.dumps(index).encode()})
    with pytest.raises(CheckpointError, match=rf"lm_head\.weight in {FIRST}, but it is in {SECOND}"):
        checked(checkpoints.write(tmp_path / "small", tree))


ENDS: list[tuple[str, str, int, int, int]] = [
    # dtype, numpy's integer, largest finite number, smallest pattern that is Inf or NaN, a NaN with the sign set
    ("F64", "<u8", 0x7FEF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000, 0xFFF8_0000_0000_0001),
    ("F32", "<u4", 0x7F7F_FFFF, 0x7F80_0000, 0xFFC0_0001),
    ("F16", "<u2", 0x7BFF, 0x7C00, 0xFE01),
    ("BF16", "<u2", 0x7F7F, 0x7F80, 0xFFC1),
    ("F8_E5M2", "u1", 0x7B, 0x7C, 0xFF),
    ("F8_E4M3", "u1", 0x7E, 0x7F, 0xFF),
]


@pytest.mark.parametrize(("dtype", "kind", "largest", "smallest_bad", "negative"), ENDS)
def test_nan_and_inf(tmp_path: Path, dtype: str, kind: str, largest: int, smallest_bad: int, negative: int) -> None:
    """At the last element, and at the very border: the largest finite number passes, the next pattern does not."""
    values = np.zeros(1001, dtype=kind)
    values[-1] = largest
    assert first_bad(tmp_path, dtype, values.tobytes()) is None
    for bad in (smallest_bad, negative):
        values[-1] = bad
        assert first_bad(tmp_path, dtype, values.tobytes()) == "w"


def first_bad(folder: Path, dtype: str, raw: bytes) -> str | None:
    """Return the tensor that holds NaN or Inf, of a file with one sound tensor and one of these bytes."""
    count = len(raw) // {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}.get(dtype, 1)
    path = folder / "model.safetensors"
    path.write_bytes(safetensors({"sound": numbers("BF16", VOCABULARY, 8), "w": (dtype, (count,), raw)}))
    _, found = read_through(path, read_header(path, "x"), "x", lambda _: None)
    return None if found is None else found.name


def test_nan_and_inf_are_refused_by_name(tmp_path: Path) -> None:
    raw = np.full(256, 0x7FC0, dtype="<u2").tobytes()
    damaged = {"model.norm.weight": ("BF16", (256,), raw), "lm_head.weight": numbers("BF16", VOCABULARY, 256)}
    folder = checkpoints.write(tmp_path / "small", checkpoints.tree(**{SECOND: safetensors(damaged)}))
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight \(BF16\) holds NaN or Inf"):
        checked(folder)


def test_integers_have_no_nan(tmp_path: Path) -> None:
    assert first_bad(tmp_path, "U8", b"\xff" * 64) is None


def test_nan_beyond_the_first_block(tmp_path: Path) -> None:
    values = np.zeros(BLOCK_BYTES // 2 + 5, dtype="<u2")
    path = tmp_path / "model.safetensors"
    for at, found in ((None, None), (-1, "w"), (BLOCK_BYTES // 2, "w"), (BLOCK_BYTES // 2 - 1, "w")):
        damaged = values.copy()
        if at is not None:
            damaged[at] = 0x7FC0
        path.write_bytes(safetensors({"w": ("BF16", (len(values),), damaged.tobytes())}))
        sha256, bad = read_through(path, read_header(path, "x"), "x", lambda _: None)
        assert (bad and bad.name) == found
        assert sha256 == digests.of_file(path)


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """256 MiB of weights (a sparse file: it takes no disk) in less than 64 MiB beyond the interpreter."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2**27], "data_offsets": [0, 2**28]}}).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 2**28)
    code = (
        "import resource, sys; from pathlib import Path; import numpy; from pipeline.checkpoints import weights\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "path = Path(sys.argv[1]); weights.read_through(path, weights.read_header(path, 'x'), 'x', lambda _: None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024, "KiB"


def test_the_memo_sees_a_change(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    os.utime(path, (1_000_000, 1_000_000))
    first = digests.of_file_memoised(path)
    assert first == digests.of_file(path)
    path.write_bytes(b"two")
    assert digests.of_file_memoised(path) == digests.of_file(path) != first


def test_the_memo_saves_reading(tmp_path: Path) -> None:
    """Same path, size, time stamp and inode: the file is not read, which is the point for 140 GB."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    os.utime(path, (1_000_000, 1_000_000))
    first = digests.of_file_memoised(path)
    with path.open("r+b") as stream:
        stream.write(b"two")
    os.utime(path, (1_000_000, 1_000_000))
    assert digests.of_file_memoised(path) == first


def test_a_file_just_written_is_not_trusted(tmp_path: Path) -> None:
    """A second write within the clock's tick may leave size and time stamp as they are."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = path.stat()
    digests.of_file_memoised(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.of_file_memoised(path) == digests.of_file(path)


def test_the_memo_serves_many_processes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}" for n in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode())
        os.utime(path, (1_000_000, 1_000_000))
    code = "import sys; from pathlib import Path; from pipeline import digests\n"
    code += "print([digests.of_file_memoised(Path(p)) for p in sys.argv[1:]])"
    command = [sys.executable, "-c", code, *map(str, paths)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate()[0] for process in running}
    assert answers == {f"{[digests.of_file(path) for path in paths]}\n"}


def test_links(tmp_path: Path) -> None:
    tree = checkpoints.tree()
    folder = checkpoints.write(tmp_path / "small", tree)
    record = checked(folder)
    out = tmp_path / "out"
    out.mkdir()
    record.save(out / "assay.json")
    (out / "model-old.safetensors").symlink_to(folder / "gone")
    link(record, folder, out)
    assert Checkpoint.load(out / "assay.json") == record
    names = {path.name for path in out.iterdir()}
    assert names == {"assay.json", *(file.path for file in record.files)}
    assert all((out / file.path).readlink() == (folder / file.path).resolve() for file in record.files)


def test_nothing_is_linked_where_a_file_is_missing(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "small", checkpoints.tree())
    record = checked(folder)
    (folder / SECOND).unlink()
    with pytest.raises(CheckpointError, match=rf"{SECOND} is not there.*dvc repro -f checkpoint"):
        link(record, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ensure(tmp_path: Path) -> None:
    tree = checkpoints.tree()
    folder = checkpoints.write(tmp_path / "small", tree)
    record = checked(folder)
    out = ensure(record, str(folder), tmp_path / "out")
    assert (out / SECOND).read_bytes() == tree[SECOND]
    (out / FIRST).unlink()
    ensure(record, str(folder), out)
    assert (out / FIRST).read_bytes() == tree[FIRST]
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="expected a folder"):
        ensure(record, str(folder), out)
    ensure(record, str(moved), out)
    assert (out / FIRST).readlink().parent == moved


def test_ensure_refuses_other_weights(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "small", checkpoints.tree())
    record = checked(folder)
    (folder / SECOND).write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"has 5 bytes.*dvc repro -f checkpoint"):
        ensure(record, str(folder), tmp_path / "out")
    other = checkpoints.tree()[SECOND]
    (folder / SECOND).write_bytes(other[:-1] + bytes([other[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"other bytes of the same length.*dvc repro -f checkpoint"):
        ensure(record, str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("org/name-that-is-absent", None, "is not there, expected a folder; for the Hub write hf://org/name-that"),
        ("https://huggingface.co/org/name", None, "is of no known kind"),
        ("hf://name", None, "names no repository"),
        ("hf://org/name@main", None, "commit in checkpoint.revision"),
        (".", "main", "checkpoint.revision: 'main' has no meaning"),
    ],
)
def test_sources_that_make_no_sense(source: str, revision: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        obtain(source, revision)


def test_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "small", checkpoints.tree())
    assert obtain(str(folder), None) == Obtained(folder, None)
