#!/bin/sh
# Installs open-speech for NVIDIA GPUs: as install-cpu.sh, with the one CUDA library that CTranslate2 opens.
#
#     install-cuda.sh PLACE [PROJECT]
#
# PLACE is the environment to make, PROJECT a checkout (default: the one this script lies in). Needs python3 and uv, but
# no GPU and no CUDA toolkit; the machine that runs it later needs NVIDIA's driver, 570 or newer.
set -eu
place=$1
project=${2:-$(cd "$(dirname "$0")/.." && pwd)}

uv venv --python "${PYTHON:-python3}" "$place"
uv pip install --python "$place/bin/python" --require-hashes --requirement "$project/requirements-cuda.lock"
uv pip install --python "$place/bin/python" --no-deps "$project"

# A library that is missing shows now, not at the first request. cuBLAS loads without a GPU.
"$place/bin/python" -c "import av, ctranslate2, onnxruntime, pocketsphinx, soxr"
"$place/bin/python" -c "
from streaming.backends import cuda_libraries
missing = set(cuda_libraries.NAMES) - set(cuda_libraries.preload())
raise SystemExit(f'cannot load {sorted(missing)}' if missing else 0)"
"$place/bin/open-speech" --version
