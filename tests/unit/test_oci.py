import io
import json
import os
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from pipeline import oci
from pipeline.errors import StorageError
from pipeline.oci import Entry, Layout


def entries(folder: Path) -> list[Entry]:
    weights = folder / "weights.bin"
    weights.write_bytes(bytes(range(256)) * 5000)
    return [
        Entry(path=PurePosixPath("/artifact/weights.bin"), content=weights),
        Entry(path=PurePosixPath("/artifact/deep/config.json"), content=b"{}"),
        Entry(path=PurePosixPath("/opt/run"), content=b"#!", executable=True),
    ]


def build(folder: Path, listed: list[Entry]) -> Layout:
    layout = Layout.create(folder)
    layer = layout.add_layer(listed, {"ai.assay.layer": "weights"})
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}
    layout.finish(config, [layer], {"org.opencontainers.image.version": "1"})
    return layout


def test_equal_content_gives_equal_digests_whatever_order_times_and_modes_say(tmp_path: Path) -> None:
    listed = entries(tmp_path)
    first = build(tmp_path / "first", listed)
    os.utime(tmp_path / "weights.bin", (10**9, 10**9))
    (tmp_path / "weights.bin").chmod(0o600)
    second = build(tmp_path / "second", listed[::-1])
    assert first.image == second.image
    assert sorted(path.name for path in first.root.rglob("*")) == sorted(path.name for path in second.root.rglob("*"))


def test_the_digest_is_the_one_that_was_written_down(tmp_path: Path) -> None:
    """A change here pushes every layer of every image again; it must be meant."""
    assert build(tmp_path / "layout", entries(tmp_path)).layers[0].digest == (
        "sha256:8a2ad0a27cd525184e8ed71dacdd11c3f53334df064d11ef779ee57e30a26a5f"
    )


def test_a_layer_unpacks_to_the_files_as_roots_at_time_0(tmp_path: Path) -> None:
    layout = build(tmp_path / "layout", entries(tmp_path))
    with tarfile.open(layout.path(layout.layers[0].digest)) as tar:
        members = {member.name: member for member in tar}
        packed = tar.extractfile("artifact/weights.bin")
        assert packed is not None
        assert packed.read() == (tmp_path / "weights.bin").read_bytes()
    assert list(members) == [
        *("artifact", "artifact/deep", "artifact/deep/config.json", "artifact/weights.bin", "opt", "opt/run")
    ]
    assert {(one.uid, one.gid, one.uname, one.mtime) for one in members.values()} == {(0, 0, "", 0)}
    assert [members[name].mode for name in ("opt", "opt/run", "artifact/weights.bin")] == [0o755, 0o755, 0o644]


def test_a_written_layout_reads_back(tmp_path: Path) -> None:
    build(tmp_path / "layout", entries(tmp_path))
    layout = Layout.open(tmp_path / "layout")
    layout.check()
    assert layout.manifest["annotations"] == {"org.opencontainers.image.version": "1"}
    assert layout.layers[0].annotations == {"ai.assay.layer": "weights"}
    assert layout.config["rootfs"]["diff_ids"] == [layout.layers[0].digest]
    assert [oci.digest(layout.read(blob)) for blob in layout.blobs] == [blob.digest for blob in layout.blobs]
    assert layout.image.platform == {"architecture": "amd64", "os": "linux"}


def test_an_image_for_arm_says_so_in_its_index(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "arm")
    layer = layout.add_layer([Entry(path=PurePosixPath("/file"), content=b"x")])
    config = {**oci.PLATFORMS["aarch64"], "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}
    layout.finish(config, [layer], {})
    assert layout.image.platform == {"architecture": "arm64", "os": "linux", "variant": "v8"}
    assert layout.config["architecture"] == "arm64"


def test_damage_is_found(tmp_path: Path) -> None:
    layout = build(tmp_path / "layout", entries(tmp_path))
    blob = layout.path(layout.layers[0].digest)
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        layout.check()
    layout.path(layout.image.digest).write_bytes(b"{}")
    with pytest.raises(StorageError, match="altered"):
        layout.manifest  # noqa: B018


def test_what_is_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no OCI layout"):
        Layout.open(tmp_path)
    layout = Layout.create(tmp_path / "layout")
    with pytest.raises(StorageError, match="index"):
        layout.image  # noqa: B018
    (layout.root / "index.json").write_text(json.dumps({"manifests": []}))
    with pytest.raises(StorageError, match="one image manifest"):
        layout.image  # noqa: B018
    with pytest.raises(StorageError, match="no sha256"):
        layout.path("sha256:../../etc/passwd")


def test_blobs_of_another_layout_are_taken_over(tmp_path: Path) -> None:
    first = build(tmp_path / "first", entries(tmp_path))
    second = Layout.create(tmp_path / "second")
    second.take(first, first.layers[0])
    second.take(first, first.layers[0])
    assert second.read(first.layers[0]) == first.read(first.layers[0])


def test_a_layer_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "layout")
    with pytest.raises(FileNotFoundError):
        layout.add_layer([Entry(path=PurePosixPath("/gone"), content=tmp_path / "gone")])
    assert list((tmp_path / "layout" / "blobs" / "sha256").iterdir()) == []


def test_long_names_are_kept(tmp_path: Path) -> None:
    stream = io.BytesIO()
    name = "/".join(["a" * 90] * 4)
    oci.write_tar(stream, [Entry(path=PurePosixPath("/") / name, content=b"x")])
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        assert tar.getnames()[-1] == name
