"""Measure the toy and print the table for docs/measured.md.

    python -m toyworld.evaluate --art FOLDER [--weights weights/toy] [--part NAME ...]

Every share comes with its 95% interval (Wilson). Random draws have seed 0. Numbers are also written to
`evaluation.json` in the weights folder, part by part.
"""
import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from activity.profile import find_capture
from pages.evidence import gain
from steering import reach_hook, sample
from toyworld import drawings
from toyworld.judge import Judge, lesson, see, shows
from toyworld.train import GUIDANCE, HELD_OUT, caption_of, write_json
from visualize import visualize
from weights.load import load

SEEDS, SAMPLES, FEATURES = 5, 400, 100        # seeds of a feature; samples of captions; features drawn at random


class World:
    """Everything that measurements look at: artworks, things, model, concepts, judge."""

    def __init__(self, art, folder, device):
        self.chosen, self.others = drawings.things(art)
        self.art, self.folder, self.model = art, folder, load(folder, device)
        self.model.capture = find_capture(self.model, Path("out"))
        self.artworks = drawings.read(art, self.chosen)
        self.concepts = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
        self.judge = Judge(len(self.chosen)).to(self.model.device).requires_grad_(False)
        self.judge.load_state_dict(load_file(folder / "judge/model.safetensors"))


def share(hits, z=1.96):
    """A list of booleans -> {"share", "low", "high", "n"}, the bounds by Wilson."""
    n = len(hits)
    share, spread = sum(hits) / n, z * z / n
    centre, half = share + spread / 2, z * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return {"share": round(share, 3), "low": round(low, 3), "high": round(high, 3), "n": n}


# --- model and judge --------------------------------------------------------------------------------------------------

def measure_vae(world):
    """Mean PSNR in dB of drawings of things that no stage has seen."""
    held = [thing for i, thing in enumerate(world.others) if i % HELD_OUT == 0]
    artworks, model = drawings.read(world.art, held), world.model
    images = drawings.draw(artworks, torch.Generator().manual_seed(0), 400)[0].to(model.device)
    again = torch.cat([model.decode(model.encode(part)) for part in images.split(50)])
    return {"psnr": round((-10 * (again - images).square().mean((1, 2, 3)).log10()).mean().item(), 2), "n": len(images)}


def found(world, count, together, pictures):
    """How often the judge names the thing (first, or among five) and the house of `count` random artworks' pictures.

    pictures(rows, generator) makes those of `together` artworks.
    """
    generator, hits = torch.Generator().manual_seed(0), {"top1": [], "top5": [], "house": []}
    for rows in torch.randint(len(world.artworks), (count,), generator=generator).split(together):
        things, houses = world.judge.verdict(pictures(rows, generator).to(world.model.device))
        right = things.cpu() == rows[:, None] // 4
        hits["top1"] += right[:, 0].tolist()
        hits["top5"] += right.any(1).tolist()
        hits["house"] += (houses.cpu() == rows % 4).tolist()
    return {name: share(of) for name, of in hits.items()}


def measure_judge(world):
    """How often the judge is right about artwork seen in ways that no lesson had."""
    return found(world, 2_000, 100, lambda rows, generator: lesson(world.artworks, rows, generator, True))


def measure_samples(world):
    """How often the judge finds the caption's thing and house in a sample of it."""
    def pictures(rows, generator):
        noise = torch.randn(len(rows), *world.model.latent_shape, generator=generator).to(world.model.device)
        context = world.model.embed([caption_of(world.chosen, a) for a in rows.tolist()])
        return world.model.decode(sample(world.model, noise, context, "ddim", 50, GUIDANCE))

    return found(world, SAMPLES, 50, pictures)


# --- the hook and the dictionary --------------------------------------------------------------------------------------

def clean_shift(model, artworks, prompts, rows, t, generator):
    """Mean square of the change of the predicted clean latent when the hook's output is replaced by its mean.

    The mean is over the rows and places of this batch; the latents have variance 1.
    """
    z = model.encode(drawings.draw_rows(artworks, rows, generator).to(model.device))
    eps = torch.randn(z.shape, generator=generator).to(model.device)
    t = torch.full((len(z),), t, device=model.device)
    x, context = model.schedule.add_noise(z, eps, t), model.embed(prompts)
    guesses = []
    for mean in (False, True):
        passes, h, _ = reach_hook(model, x, t, context)
        name, h = passes.send(h.mean((0, 2, 3), keepdim=True).expand(h.shape) if mean else h)
        while name != "conv_out":
            name, h = passes.send(h)
        guesses.append(h)
    abar = model.schedule.abar(t)
    return ((guesses[0] - guesses[1]).square() * (1 - abar) / abar).mean().item()


def measure_hook(world):
    """`clean_shift` with the empty prompt and with the caption, at three time steps."""
    rows = torch.randperm(len(world.artworks), generator=torch.Generator().manual_seed(0))[:256]
    captions = [caption_of(world.chosen, a) for a in rows.tolist()]
    out = {}
    for name, prompts in (("empty", [""] * len(rows)), ("caption", captions)):
        generator = torch.Generator().manual_seed(1)
        out[name] = {t: round(clean_shift(world.model, world.artworks, prompts, rows, t, generator), 3)
                     for t in (300, 600, 900)}
    return out


def measure_dictionary(world):
    """What dictionary/ reported of samples held out: FVU, active features a place, dead share; found by another seed.
    """
    path = world.folder / "sae" / f"unet.{world.model.hook_point}" / "training.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    return {**made["report"]["all"], "found_by_another_seed": made["found_by_another_seed"]}


def measure_concepts(world):
    """The counts of `concepts.json`: meanings of features, of raw channels and of random directions."""
    return dict(sorted(world.concepts["counts"].items()))


# --- pictures of features ---------------------------------------------------------------------------------------------

def order(result):
    """What comes first of several finished pictures: excited, strong beside the model's own images, strong."""
    strength = gain(result, "activation_reencoded") or 0
    return result.verdict == "excited", min(strength, 1), result.scores["activation_reencoded"]


def measure_features(world):
    """Of random live features that have a meaning, the share whose picture by default settings shows it.

    The ascent's picture and the finished one of the first seed, the finished one that comes first of five seeds, and,
    for chance, the first seed's with the meaning of another of these features.
    """
    rows = world.concepts["rows"]
    generator = torch.Generator().manual_seed(0)
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
    kinds = Counter(row["meaning"][0] for row in known)
    return {name: share(of) for name, of in hits.items() if of} | {
        "picked": len(picked), "with_meaning": len(known), "kinds": dict(sorted(kinds.items()))}


PARTS = {"vae": measure_vae, "judge": measure_judge, "samples": measure_samples, "hook": measure_hook,
         "dictionary": measure_dictionary, "concepts": measure_concepts, "features": measure_features}


def show(value):
    """One measured value as a cell of the table."""
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
