"""A plan of a repository on the Hub: config.json and headers come, weights do not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from pipeline import hub_errors
from pipeline.errors import CheckpointError, HubError
from pipeline.sizing import read
from tests.support import checkpoints
from tests.support.hub_server import Hub, serve

NAME = "org/large"
ROWS = 1 << 15


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, and the client in this process pointed at it."""
    with serve() as running:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(hub_errors, "WAITS_SECONDS", ())
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield running
        close_session()


def large() -> dict[str, bytes]:
    """A checkpoint of one file, 16 MB of weights."""
    tree = checkpoints.tree(**{"config.json": checkpoints.config(vocab_size=ROWS, tie_word_embeddings=True)})
    weights = {
        "model.embed_tokens.weight": ("BF16", (ROWS, 256), bytes(ROWS * 512)),
        "model.norm.weight": ("BF16", (256,), bytes(512)),
    }
    kept = {name: content for name, content in tree.items() if not name.endswith(("safetensors", "index.json"))}
    return {**kept, "model.safetensors": checkpoints.safetensors(weights)}


def test_header_bytes_and_nothing_more(server: Hub, tmp_path: Path) -> None:
    tree = large()
    commit = server.add(NAME, tree).branches["main"]
    found = read.model(f"hf://{NAME}")
    assert found.parameters == ROWS * 256 + 256
    assert found.companion_bytes == sum(len(tree[name]) for name in ("tokenizer.json", "tokenizer_config.json"))
    asked = [seen.headers.get("range") for seen in server.seen if "/cdn/" in seen.path and seen.method == "GET"]
    length = int.from_bytes(tree["model.safetensors"][:8], "little")
    assert asked == ["bytes=0-7", f"bytes=8-{7 + length}"]
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert kept < 100_000
    assert read.model(f"hf://{NAME}@{commit}").weights == found.weights


def test_shards_are_read_through_their_index(server: Hub, tmp_path: Path) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    folder = checkpoints.write(tmp_path / "same", tree)
    found, local = read.model(f"hf://{NAME}"), read.folder(folder)
    assert (found.weights, found.companion_bytes) == (local.weights, local.companion_bytes)


def test_weights_that_are_not_the_architectures_are_refused_by_name(server: Hub) -> None:
    server.add(NAME, checkpoints.tree(**{"config.json": checkpoints.config(num_hidden_layers=1)}))
    with pytest.raises(CheckpointError, match=r"9 tensors missing \(model.layers.0.input_layernorm.weight, "):
        read.model(f"hf://{NAME}")


def test_what_names_no_repository_is_refused_in_the_words_of_obtaining_it(server: Hub) -> None:
    for source in ("hf://large", f"hf://{NAME}/more@main"):
        with pytest.raises(CheckpointError, match="names no repository; expected hf://org/name"):
            read.model(source)


def test_a_server_without_ranges_is_refused_rather_than_drained(server: Hub) -> None:
    server.add(NAME, checkpoints.tree())
    server.ranges = False
    with pytest.raises(HubError, match="knows no ranges"):
        read.model(f"hf://{NAME}")


def test_a_repository_without_weights_is_counted_or_refused(server: Hub) -> None:
    kept = {"config.json": checkpoints.config(model_type="no_such")}
    server.add(NAME, kept)
    with pytest.raises(CheckpointError, match="no causal language model of the model_type no_such"):
        read.model(f"hf://{NAME}")
