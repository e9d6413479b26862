"""Scores of all results as a table: `python -m pages out/toy --csv` writes out/toy/scores.csv."""
import csv
from pathlib import Path

from results import feature_folders, read_results

SCORES = ("activation_start", "activation", "activation_no_noise", "activation_reencoded", "rank", "dataset_largest")


def write_table(folder):
    """Write folder/scores.csv, a line for each picture, and return its path."""
    path = Path(folder) / "scores.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "target", "hook_point", "timestep", "seed", "settings", "picture", "verdict", *SCORES])
        for inside in feature_folders(Path(folder)):
            for r in read_results(inside):
                settings = " ".join(f"{name}={value}" for name, value in r.recipe["differs"].items())
                for name, p in (("ascent", r), ("finished", r.finished)):
                    if p:
                        writer.writerow([r.kind, r.target, r.recipe["hook_point"], r.t, r.seed, settings, name,
                                         p.verdict, *(p.scores.get(score) for score in SCORES)])
    return path
