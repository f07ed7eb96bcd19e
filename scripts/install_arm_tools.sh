#!/usr/bin/env bash
# What the aarch64 cross build, its tests under emulation and the simulation report need, on a Debian-like machine.
set -euo pipefail
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq g++-aarch64-linux-gnu binutils-aarch64-linux-gnu qemu-user-static cmake ninja-build
# The newest llvm-mca there is: its models of the ARM cores keep improving.
newest=$(apt-cache search --names-only '^llvm-[0-9]+$' | grep -oE '^llvm-[0-9]+' | sort -t- -k2 -n | tail -1)
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$newest"
