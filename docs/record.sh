#!/usr/bin/env bash
# Record docs/pictures and docs/example, when weights/toy or the pages changed: bash docs/record.sh FOLDER
# FOLDER keeps the results; about five minutes on two cores. The 48 features are drawn at random, with seed 0.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
random=$(python -c "import random; print(*sorted(random.Random(0).sample(range(1024), 48)))")
python featviz.py --out "$out/default"
python featviz.py --out "$out/traced" --seed 1024 --trace 0 50
python featviz.py --out "$out/random" --feature $random --seed 1024
python -m pages "$out/random/toy" --atlas
python -m tests.rows_picture "$out/default/toy" docs/pictures/default.png
python -m tests.rows_picture "$out/random/toy" docs/pictures/rows.png
python -m tests.questions_picture "$out/questions"

rm -rf docs/example
mkdir docs/example
cp -r "$out/random/toy/index.html" "$out/random/toy/atlas" docs/example/
for folder in $(ls -d "$out"/random/toy/feature_* | head -n 5) "$out"/traced/toy/feature_*; do
  cp -r "$folder" docs/example/
done
find docs/example \( -name '*.safetensors' -o -name '*.json' -o -name '*.csv' -o -name '*.txt' \) -delete
du -sh docs/example
