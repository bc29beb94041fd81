#!/bin/sh
# Writes requirements.lock and requirements-cuda.lock: exact versions with hashes for every platform, and no index
# addresses, so that whoever installs chooses the index. Run it after changing the dependencies; "--upgrade" takes newer
# versions.
set -eu
cd "$(dirname "$0")/.."
lock() {
    out=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "sh docker/lock.sh" \
        --output-file "$out" "$@" pyproject.toml
}
lock requirements.lock "$@"
lock requirements-cuda.lock --extra cuda "$@"
