#!/bin/sh
# Installs open-speech for the CPU: a virtual environment with exactly the versions of a lock, and the command in it.
#
#     install-cpu.sh PLACE [PROJECT]
#
# PLACE is the environment to make, PROJECT a checkout (default: the one this script lies in). Needs python3 and uv; the
# image's build runs it, and so can you on a machine without Docker.
set -eu
place=$1
project=${2:-$(cd "$(dirname "$0")/.." && pwd)}

uv venv --python "${PYTHON:-python3}" "$place"
uv pip install --python "$place/bin/python" --require-hashes --requirement "$project/requirements.lock"
uv pip install --python "$place/bin/python" --no-deps "$project"

# A library that is missing shows now, not at the first request.
"$place/bin/python" -c "import av, ctranslate2, onnxruntime, pocketsphinx, soxr"
"$place/bin/open-speech" --version
