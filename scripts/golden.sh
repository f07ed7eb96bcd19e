#!/usr/bin/env bash
# Writes tests/golden/bits.json anew from the installed library: after a change of bits that is meant, in its own commit.
set -euo pipefail
cd "$(dirname "$0")/../tests"
"${PYTHON:-python3}" -m helpers.golden > golden/bits.json.new
mv golden/bits.json.new golden/bits.json
