"""Scores of all results as a table: `python -m pages out/toy --csv` writes out/toy/scores.csv."""
import csv
from pathlib import Path

from results import feature_folders, read_results

SCORES = ("activation_start", "activation", "activation_no_noise", "activation_reencoded", "rank", "dataset_largest")
HEAD = ("kind", "target", "hook_point", "timestep", "seed", "settings", "picture", "verdict", *SCORES)


def lines(found):
    """List what HEAD says of each picture of the results `found`."""
    for r in found:
        settings = " ".join(f"{name}={value}" for name, value in r.recipe["differs"].items())
        for name, p in (("ascent", r), ("finished", r.finished)):
            if p:
                yield (r.kind, r.target, r.recipe["hook_point"], r.t, r.seed, settings, name, p.verdict,
                       *(p.scores.get(score) for score in SCORES))


def write_table(folder):
    """Write folder/scores.csv, a line for each picture, and return its path."""
    path = Path(folder) / "scores.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for inside in feature_folders(folder):
            writer.writerows(lines(read_results(inside)))
    return path
