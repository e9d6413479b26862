"""Pages, the atlas, pictures of many features, and a table of scores: `python -m pages out/toy --atlas`."""
import sys
from pathlib import Path

from command.flags import Parser, guarded
from pages.atlas import write_atlas
from pages.feature import write_page
from pages.sheet import write_features
from pages.table import write_table
from results import feature_folders


def run(folder, atlas, csv, rows, wall):
    """Write the page of each feature, and what else is asked for; the exit code."""
    folders = feature_folders(folder)
    names = {inside.name for inside in folders} if atlas else set()
    pages = [write_page(inside, names) for inside in folders]
    made = [write_table(folder)] * csv + ([write_atlas(folder)] if atlas else pages if len(pages) == 1 else [])
    for values, usual in ((rows, 6), (wall, 48)):
        if values:
            file, count = (*values, str(usual))[:2]
            if len(values) > 2 or not count.isdigit() or count == "0":
                raise ValueError(f"{' '.join(values)}: must be a file and how many features, such as rows.png 6")
            made.append(write_features(folder, Path(file), int(count), values is rows))
    if not made:
        print(f"{len(pages)} pages written, first {pages[0]}")
    for path in made:
        print(f"look at {path}")
    return 0


def main(argv=None):
    parser = Parser(prog="pages", description="Pages of results on disk.")
    parser.add_argument("folder", type=Path, help="of a model's results, such as out/toy, or of one feature's")
    parser.add_argument("--atlas", action="store_true", help="make one page of all features, too")
    parser.add_argument("--csv", action="store_true", help="write all scores to scores.csv, too")
    parser.add_argument("--rows", nargs="+", metavar=("FILE", "N"), help="write a PNG of N (6) features drawn at "
                        "random, too: dataset images, pictures, words")
    parser.add_argument("--wall", nargs="+", metavar=("FILE", "N"), help="write a PNG of N (48) finished pictures "
                        "drawn at random, too, each with its words")
    args = parser.parse_args(argv)
    return guarded("pages", run, args.folder, args.atlas, args.csv, args.rows, args.wall)


if __name__ == "__main__":
    sys.exit(main())
