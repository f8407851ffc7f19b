#!/usr/bin/env bash
# The few wheels that a bare GPU image with torch lacks, into the folder OUT, for its Python version:
#   benchmarks/gpu_wheels.sh OUT [3.12]
# On the GPU machine, without a network: pip install --no-index --no-deps --target SITE OUT/*.whl
set -euo pipefail
out=${1:?is missing: benchmarks/gpu_wheels.sh OUT [3.12]} python=${2:-3.12} here=$(cd "$(dirname "$0")/.." && pwd)
pip=("${PIP_PYTHON:-python3}" -m pip)
lacking=(hjson pydantic pydantic_core annotated-types typing_inspection webdataset braceexpand simplejpeg)
mkdir -p "$out"
pinned=$(mktemp)
trap 'rm -f "$pinned"' EXIT
for name in "${lacking[@]}"; do
  grep -i -E "^${name//[-_]/[-_]}==" "$here/constraints.txt" >> "$pinned"
done
"${pip[@]}" download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python" \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$out" -r "$pinned"
# DeepSpeed has no wheel on PyPI. Without its operators, which are built at first use, its wheel is plain Python.
DS_BUILD_OPS=0 "${pip[@]}" wheel --quiet --no-deps --no-build-isolation -w "$out" \
  "$(grep -E '^deepspeed==' "$here/constraints.txt")"
du -sh "$out"
