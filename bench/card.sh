#!/usr/bin/env bash
# Everything that needs a CUDA card, in about ten minutes: bash bench/card.sh [FOLDER for what they print]
set -u
cd "$(dirname "$0")/.."
out=${1:-.}
python -m pytest -q tests/test_cuda.py 2>&1 | tee "$out/card_tests.txt"
timeout 420 python bench/speed.py --full | tee "$out/card_speed.md"
