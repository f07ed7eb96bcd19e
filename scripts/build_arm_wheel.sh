#!/usr/bin/env bash
# Cross-builds the aarch64 wheel for CPython 3.11 into DIRECTORY (default: dist) and prints its path.
#   scripts/build_arm_wheel.sh [DIRECTORY]
# PYTHON is a python3.11 with pip; ARM_ROOT is made when it is not given.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-dist}")
python=${PYTHON:-python3.11}
export ARM_ROOT=${ARM_ROOT:-$(scripts/arm_root.sh)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Build tools of this machine, before anything pretends to be another one: pip would fetch those of the target.
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install -q "scikit-build-core>=0.10" "pybind11>=2.13" cmake ninja >&2
# sysconfig takes the platform of the wheel's tag from the first.
PATH="$work/tools/bin:$PATH" _PYTHON_HOST_PLATFORM=linux-aarch64 CMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64.cmake" \
  "$work/tools/bin/pip" wheel -q --no-deps --no-build-isolation -w "$work" --config-settings=build-dir="$work/build" . >&2

wheel=$(echo "$work"/*.whl)
"$python" -m zipfile -e "$wheel" "$work/unpacked"
core=$(echo "$work"/unpacked/pocketformer/_core.*.so)
case $core in *cpython-311-aarch64-linux-gnu.so) ;; *) echo "unexpected file name: $core" >&2 && exit 1 ;; esac
# manylinux_2_28: no symbol of a newer C library.
floor=$(aarch64-linux-gnu-objdump -T "$core" | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -1)
tag=linux_aarch64
if [ "$(printf '%s\nGLIBC_2.28\n' "$floor" | sort -V | tail -1)" = GLIBC_2.28 ]; then tag=manylinux_2_28_aarch64; fi
mkdir -p "$out"
name=$(basename "${wheel/linux_aarch64/$tag}")
cp "$wheel" "$out/$name"
echo "$out/$name"
