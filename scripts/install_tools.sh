#!/bin/sh
# Installs what tests/test_binary.py needs beside the build: clang and binutils, from Debian's or Ubuntu's packages.
set -eu
if [ "$(id -u)" -ne 0 ]; then
  echo "run as root: apt-get install clang binutils" >&2
  exit 1
fi
apt-get update -qq
for clang in clang-19 clang; do  # the newest that g++ 12's headers and our tests have met, else the distribution's
  if apt-get install -y -qq --no-install-recommends "$clang" binutils; then exit 0; fi
done
exit 1
