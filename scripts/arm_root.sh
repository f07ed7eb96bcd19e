#!/usr/bin/env bash
# Makes an ARM Python root for the tests under emulation and prints its path: Debian's python3.11 and its headers, and the
# Python packages the library needs, unpacked; nothing is installed on the machine. Kept under POCKETFORMER_CACHE.
#   scripts/arm_root.sh [arm64 | armhf]
set -euo pipefail
. "$(dirname "$0")/cached_root.sh"
architecture=${1:-arm64}
packages="python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libpython3.11-dev python3.11 libc6 libgcc-s1 libstdc++6
  zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libncursesw6 libtinfo6 libreadline8"
wheels="numpy==2.3.* tokenizers==0.22.* pytest==9.0.* pluggy==1.6.* iniconfig==2.* packaging==25.* pygments==2.*"
# The index has no wheels for 32-bit ARM; Debian has numpy, and the tests there need no more.
if [ "$architecture" = armhf ]; then packages+=" python3-numpy libblas3 liblapack3 libgfortran5" wheels=; fi

make_root() {
  mkdir -p "$work"/{lists,archives/partial,root/site-packages,wheels}
  touch "$work/status"
  # A private state directory: the machine's own package lists and architectures stay as they are.
  local apt=(apt-get -qq -o APT::Architecture=$architecture -o APT::Architectures::=$architecture
    -o "Dir::State::status=$work/status" -o "Dir::State::lists=$work/lists" -o "Dir::Cache::archives=$work/archives"
    -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=" -o APT::Sandbox::User=root)
  "${apt[@]}" update || echo "some package lists are out of reach; going on with the others"
  (cd "$work/archives" && "${apt[@]}" download $packages)
  for deb in "$work"/archives/*.deb; do dpkg -x "$deb" "$work/root"; done

  if [ -n "$wheels" ]; then
    local python=${PYTHON:-python3.11}
    "$python" -m pip download -q --no-deps -d "$work/wheels" --only-binary=:all: --implementation cp --python-version 3.11 \
      --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
      --platform manylinux2014_aarch64 $wheels
    for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/root/site-packages"; done
  fi
}

# A changed list makes a new root.
cached_root "$architecture-root" "$(echo "$packages $wheels 1" | sha256sum | cut -d' ' -f1)"
