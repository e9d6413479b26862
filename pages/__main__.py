"""Pages, the atlas, and a table of scores: `python -m pages out/toy --atlas`."""
import csv
import sys
from pathlib import Path

from command.flags import Parser, guarded
from pages.atlas import write_atlas
from pages.evidence import ends
from pages.feature import write_page
from pages.web import count
from results import feature_folders, read_results

SCORES = ("activation_start", "activation", "activation_no_noise", "activation_reencoded", "rank", "dataset_largest")


def write_table(folder):
    """Write folder/scores.csv, a line for each picture, and return its path."""
    path = folder / "scores.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("kind", "target", "hook_point", "timestep", "seed", "settings", "picture", "verdict", *SCORES))
        for r in (r for inside in feature_folders(folder) for r in read_results(inside)):
            settings = " ".join(f"{name}={value}" for name, value in r.recipe["differs"].items())
            for name, p in ends(r).items():
                writer.writerow((r.kind, r.target, r.recipe["hook_point"], r.t, r.seed, settings, name, p.verdict,
                                 *map(p.scores.get, SCORES)))
    return path


def run(folder, atlas, csv):
    """Write the page of each feature, and what else is asked for; return the exit code."""
    pages = [write_page(inside, atlas) for inside in feature_folders(folder)]
    print(f"{count(len(pages), 'page')} written, first {pages[0]}")
    for wanted, make in ((csv, write_table), (atlas, write_atlas)):
        if wanted:
            print(f"look at {make(folder)}")
    return 0


def main(argv=None):
    parser = Parser(prog="pages", description="Pages of results on disk.")
    parser.add_argument("folder", type=Path, help="of a model's results, such as out/toy, or of one feature's")
    parser.add_argument("--atlas", action="store_true", help="make one page of all features, too")
    parser.add_argument("--csv", action="store_true", help="write all scores to scores.csv, too")
    return guarded("pages", run, *vars(parser.parse_args(argv)).values())


if __name__ == "__main__":
    sys.exit(main())
