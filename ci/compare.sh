#!/usr/bin/env bash
# What a branch changes: builds and measures what its changes ask for, takes all else from the remote, and compares.
#
#     ci/compare.sh BASE OUT      BASE: a git revision; OUT: a folder for comparison.md and comparison.html
#
# ASSAY_FAIL_ON, "worse" if not set, is what makes it fail, "never" for nothing; ASSAY_TARGET is how far the flow goes.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
base=$1 out=$2

mkdir -p "$out"
failed=0
dvc repro --pull --allow-missing "${ASSAY_TARGET:-selection}" || failed=$?
# A run without a winner leaves its ranking, and that is worth a look; one that broke off leaves the old one.
[ "$failed" = 0 ] || printf '**`dvc repro` failed; what follows is as far as it came.**\n\n' >"$out/comparison.md"

fail_on=(--fail-on "${ASSAY_FAIL_ON:-worse}")
[ "${ASSAY_FAIL_ON:-}" != never ] || fail_on=()
compared=0
assay compare "$base" --html "$out/comparison.html" "${fail_on[@]}" >>"$out/comparison.md" || compared=$?
[ "$failed" = 0 ] || exit "$failed"
exit "$compared"
