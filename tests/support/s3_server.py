"""An S3 on loopback: moto's server, spoken to through the real client by whatever is tested."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
"""Anybody's keys: moto asks for some, and takes any."""


@dataclass(frozen=True)
class Store:
    """A bucket."""

    endpoint: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """What ci/remote.sh and the client read."""
        return {**KEYS, "ASSAY_REMOTE": f"s3://{self.bucket}/dvc", "AWS_ENDPOINT_URL": self.endpoint}

    def objects(self) -> int:
        """Count what is in the bucket."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sum(len(page.get("Contents", ())) for page in pages)

    def create(self) -> None:
        """Make the bucket."""
        self._client().create_bucket(Bucket=self.bucket)

    def _client(self) -> Any:
        from botocore.session import Session

        return Session().create_client(
            "s3", endpoint_url=self.endpoint, region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip


@contextmanager
def serve() -> Iterator[Store]:
    """Run an S3 with one empty bucket until the block ends."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request says nothing
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        store = Store(f"http://127.0.0.1:{port}", "bucket")
        store.create()
        yield store
    finally:
        server.stop()
