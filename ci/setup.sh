#!/usr/bin/env bash
# Debian packages, and an environment with Assay; with ASSAY_IMAGES=1 also what images are built and started with.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++:g++ cmake:cmake git:git make:make)
if [ -n "${ASSAY_IMAGES:-}" ]; then
    packages+=(mmdebstrap:mmdebstrap buildah:buildah podman:podman)
fi
needed=()
for package in "${packages[@]}"; do command -v "${package%%:*}" >/dev/null || needed+=("${package##*:}"); done
python3 -c 'import ensurepip' 2>/dev/null || needed+=(python3-venv)
headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$headers/Python.h" ] || needed+=(python3-dev)
if [ ${#needed[@]} -gt 0 ]; then
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    "${root[@]}" apt-get update -qq
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${needed[@]}"
fi
if [ -e bootstrap.py ]; then
    make setup
else # a project, whose Assay is a package
    python3 -m venv .venv
    .venv/bin/pip install --quiet --constraint constraints.txt --requirement requirements.txt
    .venv/bin/assay toolchain
fi
