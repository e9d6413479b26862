"""Record docs/pictures/questions.png: one row for each question that can be asked beside a feature's number.

python -m tests.questions_picture FOLDER      needed again when weights/toy changes; FOLDER keeps the results
"""
import sys
from pathlib import Path

from safetensors.torch import save_file

import featviz
from pages.sheet import SMALL, save_sheet, tile
from results import read_results
from weights.load import load

PICTURE = Path(__file__).parent.parent / "docs/pictures/questions.png"
QUESTIONS = (                                   # what the row says, the flags
    ("the feature alone", "--feature 822"),
    ("--prompt: in the context of a text", "--feature 822 --prompt 'A fox face image in Twemoji style'"),
    ("--prior: from a picture of one's own", "--feature 822 --prior weights/toy/activity/images/00300.jpg"),
    ("--position 0 0: at one place of the hook's grid", "--feature 822 --position 0 0"),
    ("--diverse 20: seeds pushed apart", "--feature 822 --diverse 20"),
    ("--direction: feature 822 minus feature 725", "--direction difference.safetensors --prior guided"))


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    model = load()
    save_file({"822-725": (model.feature(822) - model.feature(725)).clone()}, folder / "difference.safetensors")
    rows = []
    for n, (words, flags) in enumerate(QUESTIONS):
        given = [part.strip() for part in flags.replace("difference", str(folder / "difference")).split("'")]
        argv = [word for i, part in enumerate(given) for word in ([part] if i % 2 else part.split())]
        argv += ["--weights", "weights/toy", "--seed", "1024", "1111", "4359", "--timestep", "500"]
        if featviz.main([*argv, "--out", str(folder / str(n))]):
            return 2
        (inside,) = (path for path in (folder / str(n) / "toy").iterdir() if path.is_dir())
        found = read_results(inside)
        rows.append([tile(None, words, SMALL),
                     *(tile(path, "", SMALL) for r in found for path in (r.path, r.last.path))])
    print(save_sheet(rows, PICTURE))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
