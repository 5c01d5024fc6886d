#!/usr/bin/env bash
# Points DVC at the remote of ASSAY_REMOTE, such as s3://bucket/path, in this checkout only; what the repository's own
# .dvc/config says holds where it is not set. AWS_ENDPOINT_URL is the address of an S3 that is not Amazon's.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

[ -n "${ASSAY_REMOTE:-}" ] || exit 0
dvc remote add --local --default --force ci "$ASSAY_REMOTE"
