"""Pages, the atlas and a table of scores of results on disk: `python -m pages out/toy --atlas`."""
import sys
from pathlib import Path

from command.flags import Parser, guarded
from pages.atlas import write_atlas
from pages.feature import write_page
from pages.table import write_table
from results import feature_folders


def run(folder, atlas, csv):
    """Write the page of each feature, and what else is asked for; the exit code."""
    folders = feature_folders(folder)
    names = {inside.name for inside in folders} if atlas else set()
    pages = [write_page(inside, names) for inside in folders]
    made = [write_table(folder)] * csv + ([write_atlas(folder)] if atlas else pages if len(pages) == 1 else [])
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
    args = parser.parse_args(argv)
    return guarded("pages", run, args.folder, args.atlas, args.csv)


if __name__ == "__main__":
    sys.exit(main())
