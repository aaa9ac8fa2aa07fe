#!/usr/bin/env bash
# The whole suite on the oldest and on the newest torch, each in a fresh environment (5 GB of disk each; they are removed).
#
#   benchmarks/versions.sh [TORCH ...]    default: '===2.13.0' '>=2.13' (three = are without local builds such as +cpu)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- '===2.13.0' '>=2.13'
export HF_HUB_OFFLINE=1
for torch in "$@"; do
  environment=$(mktemp -d)
  trap 'rm -rf "$environment"' EXIT
  "${PYTHON:-python3}" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet "torch$torch" -e '.[test,docs,studio,live,onnx,notes,codecs]'
  "$environment/bin/python" -m pip install --quiet --no-deps basic-pitch
  PATH="$environment/bin:$PATH" python -c "import platform, torch, torchaudio
print(f'Python {platform.python_version()}, torch {torch.__version__}, torchaudio {torchaudio.__version__}')"
  PATH="$environment/bin:$PATH" python -m pytest -n 2
  rm -rf "$environment"
done
