#!/usr/bin/env bash
# A tag becomes a release: everything is pulled or built, the image is verified again on this machine, and pushed.
#
#     ci/release.sh VERSION       VERSION: the tag, with or without a leading v
#
# ASSAY_REGISTRY is host/repository. Who may push is told by ASSAY_REGISTRY_USER and ASSAY_REGISTRY_PASSWORD, or by a
# login of docker or podman. With ASSAY_CHANNEL, such as stable, that tag is pointed at the new image as well.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
version=${1#v}
: "${ASSAY_REGISTRY:?is not set: host/repository that the image goes to}"

# What this machine cannot build is an error here, not a row of the report.
export ASSAY_STRICT=1
dvc repro --pull
assay release --registry "$ASSAY_REGISTRY" --tag "$version"
if [ -n "${ASSAY_CHANNEL:-}" ]; then
    digest=$(python -c 'import json; print(json.load(open("release.json"))["digest"])')
    assay promote --registry "$ASSAY_REGISTRY" "$digest" "$ASSAY_CHANNEL"
fi
