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
    for folder in folders:
        write_sheet(folder)
        print(f"look at {write_page(folder, names)}")
    if args.atlas:
        print(f"look at {write_atlas(args.atlas)}")
    if args.wall:
        print(f"look at {write_wall(args.wall, args.out or args.wall / 'wall.png')}")
    return 0


def main(argv=None):
    parser = Parser(prog="pages", description="Sheets and pages of results that lie on disk.")
    parser.add_argument("folder", type=Path, nargs="*", help="of a feature, such as out/toy/feature_00169, or of "
                        "several, such as out/toy")
    parser.add_argument("--atlas", type=Path, metavar="FOLDER", help="make one page of all features in this folder")
    parser.add_argument("--wall", type=Path, metavar="FOLDER", help="make one picture of 48 features in this folder, "
                        "drawn by lot")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the wall's picture (default: wall.png in its folder)")
    args = parser.parse_args(argv)
    if args.out and not args.wall:
        parser.error("--out names the picture of a wall: give --wall FOLDER, too")
    if not args.folder and not args.atlas and not args.wall:
        parser.error("nothing to do: give a folder of results, such as out/toy/feature_00169")
    return guarded("pages", run, args)


if __name__ == "__main__":
    sys.exit(main())
