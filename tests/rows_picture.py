"""Record README's picture of features drawn at random: python -m tests.rows_picture out/toy docs/pictures/rows.png

A row a feature: three dataset images, the ascent's picture, the finished one, and words.
"""
import random
import sys
from pathlib import Path

from pages.evidence import study
from pages.sheet import save_sheet, tile
from results import feature_folders

FEATURES, SMALL = 6, 128                        # rows; pixels an edge of a picture


def write_rows(folder, path):
    """Write a row for each of FEATURES, drawn at random with seed 0 among all that have results; return the path."""
    titles = (*["a dataset image"] * 3, "the ascent's picture", "the finished picture", "")
    rows = [[tile(None, title, SMALL) for title in titles]]
    folders = feature_folders(folder)
    for known in filter(None, map(study, random.Random(0).sample(folders, min(FEATURES, len(folders))))):
        first = known.first
        said = f"{known.words or 'no word known'}\nevidence: {known.strength}\n{first.kind} {first.target}"
        times = [first.t, *known.activity.highest] if known.activity else []
        images = dict.fromkeys(e["file"] for t in times for e in known.activity.examples.get(t, []))
        pictures = [*images, None, None, None][:3] + [first.path, first.last.path]
        rows.append([*(tile(picture, "", SMALL) for picture in pictures), tile(None, said, SMALL)])
    return save_sheet(rows, path)


if __name__ == "__main__":
    print(f"look at {write_rows(*map(Path, sys.argv[1:]))}")
