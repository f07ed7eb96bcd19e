#!/usr/bin/env bash
# Builds wheels of this checkout on any Linux machine, for others of any kind, and prints their paths.
#   scripts/build_wheels.sh [-o DIRECTORY] [TARGET ...]
# TARGET is {manylinux_2_28,musllinux_1_2}_{x86_64,aarch64}, by default all four; or linux_armv7l, which Debian's cross compiler
# builds for the tests. PYTHON runs the build; the wheels are for the Python whose headers lie in PYTHON_INCLUDE, by default
# PYTHON's own. Beside the wheels, symbols/TAG/ holds their extensions unstripped.
# The compiler is zig's clang from the package index: it brings the headers of every C library, and libc++ to link statically,
# where a distribution's g++ asks for the C and C++ libraries of that distribution or later.
set -euo pipefail
cd "$(dirname "$0")/.."
out=dist
while getopts o: option; do
  case $option in o) out=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
if [ $# -eq 0 ]; then set -- manylinux_2_28_{x86_64,aarch64} musllinux_1_2_{x86_64,aarch64}; fi
mkdir -p "$out"
out=$(realpath "$out")
python=${PYTHON:-python3}
cache=${POCKETFORMER_CACHE:-$HOME/.cache/pocketformer}
packages="ziglang==0.17.* scikit-build-core==1.* pybind11==3.1.* cython==3.3.* cmake==4.* ninja==1.* auditwheel==6.* wheel"
tools=$cache/wheel-tools-$(echo "$packages $("$python" -V)" | sha256sum | cut -c1-12)
if [ ! -e "$tools/ready" ]; then
  echo "installing the build tools into $tools" >&2
  "$python" -m venv "$tools"
  "$tools/bin/pip" install -q $packages >&2
  touch "$tools/ready"
fi
if [ -n "${BUILD_DIR:-}" ]; then work=$BUILD_DIR; else work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; fi
PATH=$tools/bin:$PATH
ZIG=$(python -c 'import importlib.util as u; print(u.find_spec("ziglang").submodule_search_locations[0] + "/zig")')
export ZIG ZIG_GLOBAL_CACHE_DIR=$cache/zig ZIG_LOCAL_CACHE_DIR=$work/zig
include=${PYTHON_INCLUDE:-$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')}
python_version() { sed -nE "s/^#define PY_$1_VERSION\s+([0-9]+).*/\1/p" "$include/patchlevel.h"; }
tag=cp$(python_version MAJOR)$(python_version MINOR)

for target in "$@"; do
  export WHEEL_COMPILER=$PWD/cmake/zig-c++ WHEEL_PROCESSOR=${target#*linux_*_*_}
  triplet=$WHEEL_PROCESSOR-linux-gnu abi=$WHEEL_PROCESSOR-linux-gnu
  case $target in
    manylinux_2_28_*) export ZIG_TARGET=$triplet.2.28 ;;
    musllinux_1_2_*) abi=$WHEEL_PROCESSOR-linux-musl && export ZIG_TARGET=$abi ;;
    linux_armv7l) triplet=arm-linux-gnueabihf abi=$triplet WHEEL_COMPILER=$triplet-g++ WHEEL_PROCESSOR=armv7l ;;
    *) echo "unknown target $target; there are {manylinux_2_28,musllinux_1_2}_{x86_64,aarch64} and linux_armv7l" >&2 && exit 2 ;;
  esac
  export WHEEL_EXTENSION=.cpython-${tag#cp}-$abi.so
  build=$work/$target
  # Debian keeps the one header that differs between machines apart.
  export WHEEL_PYTHON_INCLUDE=$build/include
  rm -rf "$build"/{*.whl,include,unpacked,packed}
  mkdir -p "$build/packed"
  cp -r "$include" "$build/include"
  own=$include/../$triplet/$(basename "$include")/pyconfig.h
  if [ -e "$own" ]; then cp "$own" "$build/include/pyconfig.h"; fi

  # sysconfig takes the platform from the first; the tags are set right below.
  _PYTHON_HOST_PLATFORM=linux-$WHEEL_PROCESSOR CMAKE_TOOLCHAIN_FILE=$PWD/cmake/wheel.cmake \
    pip wheel -q --no-deps --no-build-isolation -w "$build" -C build-dir="$build/cmake" -C install.strip=false . >&2
  mkdir -p "$out/symbols/$tag-$target"
  cp "$build"/cmake/_core.*.so "$build"/cmake/{compression/_rounding,_sampling}.*.so "$out/symbols/$tag-$target/"
  wheel unpack -d "$build/unpacked" "$build"/*.whl > /dev/null
  "$triplet-strip" "$build"/unpacked/*/pocketformer/{_core,_sampling,compression/_rounding}.*.so
  wheel pack -d "$build/packed" "$build"/unpacked/* > /dev/null
  name=$(wheel tags --remove --python-tag "$tag" --abi-tag "$tag" --platform-tag "$target" "$build"/packed/*.whl)
  # What it needs the target's systems have. On a glibc machine auditwheel knows musl no policy: tests/builds/test_wheels.py looks itself.
  if [ "${target%%_*}" = manylinux ]; then
    auditwheel show "$build/packed/$name" > "$build/audit"
    needs=$(tr '\n' ' ' < "$build/audit" | sed -nE 's/.*platform tag: +"([^"]*)".*/\1/p')
    if [ "${needs%%_*}" != "${target%%_*}" ] || [ "$(printf '%s\n' "$needs" "$target" | sort -V | tail -1)" != "$target" ]; then
      cat "$build/audit" >&2 && exit 1
    fi
  fi
  cp "$build/packed/$name" "$out/"
  echo "$out/$name"
done
