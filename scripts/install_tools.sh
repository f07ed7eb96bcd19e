#!/usr/bin/env bash
# Installs what the tests need beside Python, from Debian's or Ubuntu's packages: compilers and binutils for
# tests/builds/test_binary.py and tests/builds/test_wheels.py; clang's sanitizers for scripts/fuzz.sh; the ARM compilers and the emulator
# for tests/builds/test_arm.py; llvm-mca for scripts/simulate_boards.py; SIMDe for
# tests/kernels/test_emulated.py.
# Does nothing, and needs no root, when all are there.
set -euo pipefail

has() { command -v "$1" > /dev/null; }
any() { for tool in "$@"; do if has "$tool"; then return; fi; done; return 1; }
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" > /dev/null; }

missing=()
has g++ || missing+=(g++)
has objdump || missing+=(binutils)
has aarch64-linux-gnu-g++ || missing+=(g++-aarch64-linux-gnu)
has aarch64-linux-gnu-objdump || missing+=(binutils-aarch64-linux-gnu)
has arm-linux-gnueabihf-g++ || missing+=(g++-arm-linux-gnueabihf)
[ -e /usr/include/simde/x86/avx512.h ] || missing+=(libsimde-dev)
has qemu-aarch64-static || missing+=(qemu-user-static)
any clang++ clang++-19 || missing+=(clang)
compgen -G '/usr/lib/llvm-19/lib/clang/*/lib/linux/libclang_rt.fuzzer-*' > /dev/null || missing+=(libclang-rt-19-dev)
any llvm-mca-{22..30} || missing+=(llvm)  # older models of the ARM cores give other figures
if [ ${#missing[@]} -eq 0 ]; then exit; fi

if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
  echo "missing tools; as root on Debian or Ubuntu: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
apt-get update -qq
for package in "${missing[@]}"; do
  case $package in
    clang) install clang-19 || install clang ;;  # 19 is what the tests have met
    llvm)  # the newest: its models of the ARM cores keep improving
      newest=$(apt-cache search --names-only '^llvm-[0-9]+$' | grep -oE '^llvm-[0-9]+' | sort -t- -k2 -n | tail -1)
      install "${newest:-llvm}" ;;
    *) install "$package" ;;
  esac
done
