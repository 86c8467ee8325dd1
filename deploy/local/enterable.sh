#!/usr/bin/env bash
# Runs a command in the checkout. Tests start processes of other users; where those cannot enter the checkout (it
# lies below a private home, say), the command runs in a mount namespace of its own, in which everything of the
# checkout is bound to a directory that all can enter.
set -euo pipefail
cd "$(dirname "$0")/../.."
if setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$PWD/.venv/bin/python" 2>/dev/null; then
    exec "$@"
fi
place=$(mktemp -d /tmp/headrace-checkout-XXXXXX)
chmod 755 "$place"
trap 'rm -rf --one-file-system "$place"' EXIT
unshare --mount --propagation private -- bash -c '
    set -euo pipefail
    place=$1
    shift
    shopt -s dotglob
    for entry in *; do
        if [ -d "$entry" ]; then mkdir "$place/$entry"; else touch "$place/$entry"; fi
        mount --bind "$entry" "$place/$entry"
    done
    cd "$place"
    exec "$@"
' bash "$place" "$@"
