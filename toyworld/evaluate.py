"""Measure the toy and print the table for docs/measured.md.

    python -m toyworld.evaluate --art FOLDER [--weights weights/toy] [--part NAME ...]

Shares have 95% intervals (Wilson). Numbers are also written to `evaluation.json` of the weights, part by part.
"""
import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from activity.profile import find_capture
from pages.evidence import gain
from steering import sample
from toyworld import drawings
from toyworld.judge import Judge, lesson, see, shows
from toyworld.train import GUIDANCE, HELD_OUT, write_json
from visualize import visualize
from weights.load import load

SEEDS, SAMPLES, FEATURES = 5, 400, 100        # seeds of a feature; samples of captions; features drawn at random


class World:
    """Hold what is measured, and with what: artworks, things, model, concepts, judge."""

    def __init__(self, art, folder, device):
        self.chosen, self.others = drawings.things(art)
        self.art, self.folder, self.model = art, folder, load(folder, device)
        self.model.capture = find_capture(self.model, Path("out"))
        self.artworks, self.captions = drawings.read(art, self.chosen), drawings.captions(self.chosen)
        self.concepts = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
        self.judge = Judge(len(self.chosen)).to(self.model.device).requires_grad_(False)
        self.judge.load_state_dict(load_file(folder / "judge/model.safetensors"))


def share(hits, z=1.96):
    """Count the share of a list of booleans: {"share", "low", "high", "n"}, the bounds by Wilson."""
    n = len(hits)
    share, spread = sum(hits) / n, z * z / n
    centre, half = share + spread / 2, z * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return {"share": round(share, 3), "low": round(low, 3), "high": round(high, 3), "n": n}


def measure_vae(world):
    """Measure the mean PSNR in dB of drawings of things that no stage has seen."""
    held = [thing for i, thing in enumerate(world.others) if i % HELD_OUT == 0]
    artworks, model = drawings.read(world.art, held), world.model
    images = drawings.draw(artworks, torch.Generator().manual_seed(0), 400)[0].to(model.device)
    again = torch.cat([model.decode(model.encode(part)) for part in images.split(50)])
    return {"psnr": round((-10 * (again - images).square().mean((1, 2, 3)).log10()).mean().item(), 2), "n": len(images)}


def found(world, count, together, pictures):
    """Count how often the judge names thing (first, or among five) and house of `count` random artworks, from what
    pictures(rows, generator) makes of `together` of them."""
    generator, hits = torch.Generator().manual_seed(0), {"top1": [], "top5": [], "house": []}
    for rows in torch.randint(len(world.artworks), (count,), generator=generator).split(together):
        things, houses = world.judge.verdict(pictures(rows, generator).to(world.model.device))
        right = things.cpu() == rows[:, None] // 4
        hits["top1"] += right[:, 0].tolist()
        hits["top5"] += right.any(1).tolist()
        hits["house"] += (houses.cpu() == rows % 4).tolist()
    return {name: share(of) for name, of in hits.items()}


def measure_judge(world):
    """Count how often the judge is right about artwork seen in ways that no lesson had."""
    return found(world, 2_000, 100, lambda rows, generator: lesson(world.artworks, rows, generator, True))


def measure_samples(world):
    """Count how often the judge finds the caption's thing and house in a sample of it."""
    def pictures(rows, generator):
        noise = torch.randn(len(rows), *world.model.latent_shape, generator=generator).to(world.model.device)
        context = world.model.embed([world.captions[a] for a in rows])
        return world.model.decode(sample(world.model, noise, context, "ddim", 50, GUIDANCE))

    return found(world, SAMPLES, 50, pictures)


def order(result):
    """Order finished pictures: excited, strong beside the model's own images, strong."""
    strength = gain(result, "activation_reencoded") or 0
    return result.verdict == "excited", min(strength, 1), result.scores["activation_reencoded"]


def measure_features(world):
    """Count the pictures, by default settings, that show the meaning of random live features that have one: ascent and
    finish of the first seed, the first finish of SEEDS by `order`, and for chance a finish with another's meaning."""
    rows, generator = world.concepts["rows"], torch.Generator().manual_seed(0)
    picked = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:FEATURES].tolist()]
    known = [row for row in picked if row["meaning"]]
    hits = {"ascent": [], "finished": [], "first of five": [], "chance": []}
    for i, row in enumerate(known):
        results = visualize(world.model, features=[row["feature"]], seeds=list(range(SEEDS)))
        finished = [result.finished for result in results]
        pictures = {"ascent": results[0], "finished": finished[0], "first of five": max(finished, key=order)}
        seen = dict(zip(pictures, see(world, torch.stack([result.image for result in pictures.values()]))))
        for name in pictures:
            hits[name].append(shows(seen[name], row["meaning"]))
        other = known[(i + 1 + len(known) // 2) % len(known)]["meaning"]
        if other != row["meaning"]:
            hits["chance"].append(shows(seen["finished"], other))
    shares = {name: share(of) for name, of in hits.items() if of}
    return shares | {"picked": len(picked), "with_meaning": len(known)}


PARTS = {"vae": measure_vae, "judge": measure_judge, "samples": measure_samples, "features": measure_features,
         "concepts": lambda world: world.concepts["counts"]}


def show(value):
    """Write one measured value as a cell of the table."""
    if isinstance(value, dict) and "share" in value:
        return f"{value['share']:.2f} ({value['low']:.2f} to {value['high']:.2f}, n = {value['n']})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show(v)}" for key, v in value.items())
    return str(value)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, required=True, help="folder of the unpacked artwork packages")
    parser.add_argument("--weights", type=Path, default=Path("weights/toy"))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    world = World(args.art, args.weights, args.device)
    path = args.weights / "evaluation.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    print("| part | measured | value |\n|---|---|---|")
    for part in args.part:
        stored[part] = PARTS[part](world)
        write_json(path, stored)
        for name, value in stored[part].items():
            print(f"| {part} | {name} | {show(value)} |", flush=True)


if __name__ == "__main__":
    main()
