"""Measure the toy and print the table for docs/measured.md.

    python -m toyworld.evaluate --art FOLDER [--weights weights/toy] [--samples 400] [--features 100] [--part NAME ...]
    python -m toyworld.evaluate --art FOLDER --claims [--arm NAME ...]         about an hour of one core, resumes

Every share comes with its 95% interval (Wilson). Random draws have seed 0. Numbers are also written to
`evaluation.json` in the weights folder, part by part; those of --claims (toyworld/claims.py) to docs/results.json.
"""
import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch

from steering import sample
from toyworld import claims, drawings
from toyworld.judge import lesson
from toyworld.seen import World, see, share, shows
from toyworld.train import GUIDANCE, HELD_OUT, caption_of, write_json
from visualize import visualize

SEEDS = 5


# --- model and judge --------------------------------------------------------------------------------------------------

@torch.no_grad()
def measure_vae(world, args):
    """Mean PSNR in dB of drawings of things that no stage has seen."""
    held = [thing for i, thing in enumerate(world.others) if i % HELD_OUT == 0]
    artworks = drawings.read(world.art, held)
    generator, model = torch.Generator().manual_seed(0), world.model
    images = drawings.draw(artworks, generator, 400)[0].to(model.device)
    again = torch.cat([model.decode(model.encode(part)) for part in images.split(50)])
    return {"psnr": round((-10 * (again - images).square().mean((1, 2, 3)).log10()).mean().item(), 2), "n": len(images)}


def found(world, batches):
    """How often the judge names the thing (first, or among five) and the house of (pictures, their artworks)."""
    hits = {"top1": [], "top5": [], "house": []}
    for images, rows in batches:
        things, houses = world.judge.verdict(images.to(world.model.device))
        right = things.cpu() == rows[:, None] // 4
        hits["top1"] += right[:, 0].tolist()
        hits["top5"] += right.any(1).tolist()
        hits["house"] += (houses.cpu() == rows % 4).tolist()
    return {name: share(of) for name, of in hits.items()}


def measure_judge(world, args):
    """How often the judge is right about artwork seen in ways that no lesson had."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(world.artworks), (2_000,), generator=generator)
    return found(world, ((lesson(world.artworks, part, generator, True), part) for part in rows.split(100)))


def measure_samples(world, args):
    """How often the judge finds the caption's thing and house in a sample of it."""
    model, generator = world.model, torch.Generator().manual_seed(0)
    rows = torch.randint(len(world.artworks), (args.samples,), generator=generator)

    def pictures(part):
        noise = torch.randn(len(part), *model.latent_shape, generator=generator).to(model.device)
        context = model.embed([caption_of(world.chosen, a) for a in part.tolist()])
        return model.decode(sample(model, noise, context, "ddim", 50, GUIDANCE))

    return found(world, ((pictures(part), part) for part in rows.split(50)))


# --- the hook and the dictionary --------------------------------------------------------------------------------------

@torch.no_grad()
def clean_shift(model, artworks, prompts, rows, t, generator):
    """Mean square of the change of the predicted clean latent when the hook's output is replaced by its mean.

    The mean is over the rows and places of this batch; the latents have variance 1.
    """
    z, hook = model.encode(drawings.draw_rows(artworks, rows, generator).to(model.device)), model.hook_point
    eps = torch.randn(z.shape, generator=generator).to(model.device)
    t = torch.full((len(z),), t, device=model.device)
    x, context = model.schedule.add_noise(z, eps, t), model.embed(prompts)
    guesses = []
    for mean in (False, True):
        passes = model.unet.run(x, t, context)
        name, h = next(passes)
        while name != "conv_out":
            if name == hook and mean:
                h = h.mean((0, 2, 3), keepdim=True).expand(h.shape)
            name, h = passes.send(h)
        guesses.append(h)
    abar = model.schedule.abar(t)
    return ((guesses[0] - guesses[1]).square() * (1 - abar) / abar).mean().item()


def measure_hook(world, args):
    """`clean_shift` with the empty prompt and with the caption, at three time steps."""
    rows = torch.randperm(len(world.artworks), generator=torch.Generator().manual_seed(0))[:256]
    captions = [caption_of(world.chosen, a) for a in rows.tolist()]
    out = {}
    for name, prompts in (("empty", [""] * len(rows)), ("caption", captions)):
        generator = torch.Generator().manual_seed(1)
        out[name] = {t: round(clean_shift(world.model, world.artworks, prompts, rows, t, generator), 3)
                     for t in (300, 600, 900)}
    return out


def measure_dictionary(world, args):
    """What dictionary/ reported of samples held out: FVU, active features a place, dead share; found by another seed.
    """
    path = Path(world.folder) / "sae" / f"unet.{world.model.hook_point}" / "training.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    return {**made["report"]["all"], "found_by_another_seed": made["found_by_another_seed"]}


def measure_concepts(world, args):
    """The counts of `concepts.json`: meanings of features, of raw channels and of random directions."""
    stored = world.concepts()
    return {"channels": stored["channels"], "features": stored["features"], **stored["counts"]}


# --- pictures of features ---------------------------------------------------------------------------------------------

def order(result):
    """What comes first of several pictures of a feature: excited, strong beside the model's own images, strong."""
    last = result.finished or result
    value, most = last.scores.get("activation_reencoded") or 0.0, last.scores.get("dataset_largest")
    return last.verdict == "excited", min(value / most, 1) if most else 0, value


def measure_features(world, args):
    """Of random live features that have a meaning, the share whose picture by default settings shows it.

    The ascent's picture and the finished one of the first seed, the finished one that comes first of five seeds, and,
    for chance, the first seed's with the meaning of another of these features.
    """
    rows = world.concepts()["rows"]
    generator = torch.Generator().manual_seed(0)
    picked = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:args.features].tolist()]
    known = [row for row in picked if row["meaning"]]
    hits = {"ascent": [], "finished": [], "first of five": [], "chance": []}
    for i, row in enumerate(known):
        results = visualize(world.model, features=[row["feature"]], seeds=list(range(SEEDS)))
        first = max((result for result in results if result.job.seed == 0), key=order)
        best = max(results, key=order)
        pictures = {"ascent": first, "finished": first.finished or first, "first of five": best.finished or best}
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


def measure_claims(world, args):
    """Measure all arms or some; after all, write docs/results.json and print its tables."""
    claims.run(world, args.runs, args.arm or list(claims.ARMS), lambda text: print(text, file=sys.stderr, flush=True))
    if not args.arm:
        results = claims.report(world, args.runs)
        write_json(args.results, results)
        print("\n".join(claims.tables(results)))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, required=True, help="folder of the unpacked artwork packages")
    parser.add_argument("--weights", type=Path, default=Path("weights/toy"))
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--claims", action="store_true", help="measure toyworld/claims.py instead")
    parser.add_argument("--arm", nargs="+", choices=claims.ARMS, metavar="NAME", help="of the claims, these alone")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"), help="where finished arms are kept")
    parser.add_argument("--results", type=Path, default=Path("docs/results.json"), help="what --claims writes")
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    world = World(args.art, args.weights, args.device)
    if args.claims:
        return measure_claims(world, args)
    path = args.weights / "evaluation.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    print("| part | measured | value |\n|---|---|---|")
    for part in args.part:
        stored[part] = PARTS[part](world, args)
        write_json(path, stored)
        for name, value in stored[part].items():
            print(f"| {part} | {name} | {show(value)} |", flush=True)


if __name__ == "__main__":
    main()
