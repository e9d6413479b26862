"""Sheets, pages, the atlas and a wall of results that lie on disk: `python -m pages out/toy`."""
import sys
from pathlib import Path

from command.flags import Parser, guarded


def feature_folders(folder):
    """The folder itself if results lie in it, else all in it that have some."""
    if any(folder.glob("t*/seed_*.json")):
        return [folder]
    inside = sorted({path.parent.parent for path in folder.glob("*/t*/seed_*.json")})
    if not inside:
        raise ValueError(f"{folder}: holds no results; give a folder that featviz.py wrote, such as "
                         "out/toy/feature_00169 or out/toy")
    return inside


def run(args):
    from pages.atlas import write_atlas
    from pages.feature import write_page
    from pages.sheet import write_sheet
    from pages.wall import write_wall
    folders = [inside for folder in args.folder for inside in feature_folders(folder)]
    names = {folder.name for folder in folders}
    if args.measure:
        measure(folders, args.weights)
    for folder in folders:
        write_sheet(folder)
        print(f"look at {write_page(folder, names)}")
    if args.atlas:
        print(f"look at {write_atlas(args.atlas)}")
    if args.wall:
        print(f"look at {write_wall(args.wall, args.out or args.wall / 'wall.png')}")
    return 0


def measure(folders, weights):
    """legibility.json into each folder; a line says what is missing for that, eyes or a capture."""
    import torch

    from pages.measure import Measurer, find_weights
    from weights.eyes import MISSING, find_eyes
    device, measurers, without = "cuda" if torch.cuda.is_available() else "cpu", {}, []
    for folder in folders:
        home = weights or find_weights(folder)
        if home and home not in measurers:
            measurers[home] = Measurer(home, device) if find_eyes(home) else None
            if not measurers[home]:
                print(f"not measured: {MISSING.format(home)}", file=sys.stderr)
        if measurers.get(home) and not measurers[home].write(folder):
            without.append(folder)
    if without:
        print(f"not measured: {len(without)} of {len(folders)} folders, first {without[0]}: there is no capture of the "
              "weights that made them", file=sys.stderr)


def main(argv=None):
    parser = Parser(prog="pages", description="Sheets and pages of results that lie on disk.")
    parser.add_argument("folder", type=Path, nargs="*", help="of a feature, such as out/toy/feature_00169, or of "
                        "several, such as out/toy")
    parser.add_argument("--atlas", type=Path, metavar="FOLDER", help="make one page of all features in this folder")
    parser.add_argument("--wall", type=Path, metavar="FOLDER", help="make one picture of 48 features in this folder, "
                        "drawn by lot")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the wall's picture (default: wall.png in its folder)")
    parser.add_argument("--measure", action="store_true", help="measure how well the pictures of these folders can be "
                        "read, by CLIP or the weights' own eyes, and show it")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="the folder of the weights that made the results, "
                        "for --measure (default: weights/<name>)")
    args = parser.parse_args(argv)
    if args.out and not args.wall:
        parser.error("--out names the picture of a wall: give --wall FOLDER, too")
    if args.measure and not args.folder:
        parser.error("--measure needs folders of results: python -m pages out/toy --measure --atlas out/toy")
    if not args.folder and not args.atlas and not args.wall:
        parser.error("nothing to do: give a folder of results, such as out/toy/feature_00169")
    return guarded("pages", run, args)


if __name__ == "__main__":
    sys.exit(main())
