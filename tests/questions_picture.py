"""Record docs/pictures/questions.png: one row for each question that can be asked beside a feature's number.

python -m tests.questions_picture FOLDER      needed again when weights/toy changes; FOLDER keeps the pictures
"""
import sys
from pathlib import Path

import featviz
from pages.sheet import save_sheet, tile
from tests.rows_picture import SMALL
from vae import to_png

PICTURE = Path(__file__).parent.parent / "docs/pictures/questions.png"


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    model, feature, rows = featviz.load("weights/toy"), {"features": 822}, []
    difference = {"822-725": model.feature(822) - model.feature(725)}
    for words, asked in (
            ("the feature alone", feature),
            ("--prompt: in the context of a text", feature | {"prompt": "A fox face image in Twemoji style"}),
            ("--prior: from a picture of one's own", feature | {"prior": "weights/toy/activity/images/00300.jpg"}),
            ("--position 0 0: at one place of the hook's grid", feature | {"position": (0, 0)}),
            ("--diverse 20: seeds pushed apart", feature | {"diverse": 20.0}),
            ("--direction: feature 822 minus feature 725", {"directions": difference, "prior": "guided"})):
        row = [tile(None, words, SMALL)]
        for result in featviz.visualize(model, seeds=[1024, 1111, 4359], timesteps=500, **asked):
            for name, shown in (("ascent", result), ("finished", result.finished)):
                path = folder / f"{len(rows)}_{result.job.seed}_{name}.png"
                path.write_bytes(to_png(shown.image))
                row.append(tile(path, "", SMALL))
        rows.append(row)
    print(save_sheet(rows, PICTURE))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
