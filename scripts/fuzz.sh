#!/usr/bin/env bash
# Builds the runtime with the address and undefined-behaviour sanitizers and runs every fuzzer from the kept corpus; fails
# each allocation in turn; then builds it with the thread sanitizer and runs concurrent sessions.
#
#   scripts/fuzz.sh [SECONDS]     SECONDS of fuzzing, shared by the five targets (default 300); 0 runs the corpus alone
#   KEEP=1 scripts/fuzz.sh 3600   also minimises what was found into fuzz/corpus.tar.xz
#
# A finding stops it with the input in build/fuzz/findings. Needs clang-19 with its sanitizer runtime
# (scripts/install_tools.sh) and, once, a package index.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-300}
python=${PYTHON:-python3}
cache=${POCKETFORMER_CACHE:-$HOME/.cache/pocketformer}
build=$PWD/build/fuzz
packages="atheris==3.0.0 numpy tokenizers safetensors rich pybind11 cython cmake ninja"
venv=$cache/fuzz-$(echo "$packages $("$python" -V)" | sha256sum | cut -c1-12)
targets=(program pocket safetensors tokenizer bindings)

if [ ! -e "$venv/ready" ]; then
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet $packages
  touch "$venv/ready"
fi
export PATH=$venv/bin:$PATH

build() {  # folder, sanitizers, targets …
  local folder=$build/$1 sanitizers=$2
  shift 2
  {
    cmake -S . -B "$folder" -G Ninja -DCMAKE_CXX_COMPILER=clang++-19 -DPython_EXECUTABLE="$venv/bin/python" \
      -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" -DPOCKETFORMER_SANITIZE="$sanitizers" &&
      cmake --build "$folder" --target "$@"
  } > "$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
}

mkdir -p "$build/package" "$build/findings"
build cmake address,undefined,fuzzer-no-link _core _rounding _sampling fuzz_program drive_memory
build threads thread drive_threads
rm -rf "$build/package/pocketformer"
cp -r python/pocketformer "$build/package/"
cp "$build"/cmake/_{core,sampling}*.so "$build/package/pocketformer/"
cp "$build"/cmake/compression/_rounding*.so "$build/package/pocketformer/compression/"

# The sanitizer's runtime must be the first library of the process. Python itself frees nothing at exit.
runtime=$(python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$build/package:$PWD/tests:$PWD/fuzz PYTHONWARNINGS=ignore

fuzz() {  # target, libFuzzer options …
  local target=$1
  shift
  if [ "$target" = program ]; then
    "$build/cmake/fuzz/fuzz_program" "$@"
  else
    LD_PRELOAD=$runtime python fuzz/targets.py "$target" "$@"
  fi
}

rm -rf "$build/corpus"
mkdir -p "$build/corpus"
if [ -e fuzz/corpus.tar.xz ]; then tar -xJf fuzz/corpus.tar.xz -C "$build/corpus"; fi
LD_PRELOAD=$runtime python fuzz/seeds.py "$build/corpus"
for target in "${targets[@]}"; do
  corpus=$build/corpus/$target
  mkdir -p "$corpus"
  options=(-max_len=20000 -len_control=20 -timeout=300 -rss_limit_mb=4096 "-artifact_prefix=$build/findings/$target-")
  if [ "$seconds" -eq 0 ]; then options+=(-runs=0); else options+=("-max_total_time=$((seconds / 5 + 1))"); fi
  if ! fuzz "$target" "${options[@]}" -print_final_stats=1 "$corpus" > "$build/$target.log" 2>&1; then
    tail -n 60 "$build/$target.log"
    echo "fuzzing $target found something: build/fuzz/$target.log, build/fuzz/findings" >&2
    exit 1
  fi
  echo "$target: $(grep -oE 'number_of_executed_units: [0-9]+' "$build/$target.log" | grep -oE '[0-9]+') inputs," \
    "$(find "$corpus" -type f | wc -l) in the corpus"
done

echo "memory: $(ASAN_OPTIONS='' "$build/cmake/fuzz/drive_memory" | tail -n 1)"
echo "threads: $("$build/threads/fuzz/drive_threads")"

if [ -n "${KEEP:-}" ]; then  # libFuzzer cannot start itself again under Python: those keep what they found
  rm -rf "$build/minimal"
  cp -r "$build/corpus" "$build/minimal"
  rm -r "$build/minimal/program"
  mkdir "$build/minimal/program"
  rm -f "$build/corpus/program"/seed*  # made again each time, and no archive makes random bytes smaller
  fuzz program -merge=1 -max_len=20000 "$build/minimal/program" "$build/corpus/program" > "$build/merge.log" 2>&1
  tar -C "$build/minimal" --sort=name --owner=0 --group=0 --mtime=@0 -cJf fuzz/corpus.tar.xz "${targets[@]}"
  ls -l fuzz/corpus.tar.xz
fi
