"""Measure the toy: autoencoder, samples, sparse autoencoder, concept features, and pictures of other settings.

    python -m toyworld.evaluate                 everything but the ascent; evaluation.json, concepts.json, two sheets
    python -m toyworld.evaluate --concepts      only the concept features, at the time step of featviz.json
    python -m toyworld.evaluate --try '{"prior": "steer", "timestep": 300}' --every 8
                                                other settings on every 8th of them; stores nothing
    python -m toyworld.evaluate --figure        features.png: each object's and style's strongest feature, visualised
    python -m toyworld.evaluate --choose        which of these `python featviz.py` shows: into featviz.json

All drawings here come from another world seed than those that were learnt from.
"""
import argparse
import dataclasses
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from activity import profile
from activity.times import full
from weights.load import load
from config import Job, configure
from finish import visualize
from vae import to_uint8
from sae import fvu
from toyworld import drawings
from toyworld.drawings import OBJECTS, STYLES
from toyworld.judge import load_judge
from toyworld.train import GUIDANCE, capture, encode_all, make_drawings, write_json

UNSEEN = 1                  # world seed of the drawings that nothing was trained on
TOP = 50                    # strongest images of a feature
SHARE = 0.9                 # of them that must share an object, a style or both
PICTURES = Path(__file__).parent.parent / "docs/pictures"
SEED = 1024                 # of the ascent; one a feature


def wilson(right, n, z=1.96):
    """95% interval of a share: (low, high)."""
    if n == 0:
        return 0.0, 1.0
    p, d = right / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return max(0.0, middle - half), min(1.0, middle + half)


def share(right):
    """Of a bool tensor: {"share", "interval", "n"}."""
    n, k = len(right), int(right.sum())
    return {"share": round(k / max(n, 1), 4), "interval": [round(v, 3) for v in wilson(k, n)], "n": n}


def tell(name, value):
    print(f"{name:34} {json.dumps(value)}", flush=True)
    return value


def pairs(n, device):
    """Object and style of drawings 0..n-1: (n,), (n,)."""
    return torch.tensor([drawings.labels(i) for i in range(n)], device=device).T


def grid(images, columns, path, scale=2):
    """Pictures (n, 3, 64, 64) in rows of `columns`, enlarged."""
    rows = [torch.cat(list(images[i:i + columns]), dim=2) for i in range(0, len(images), columns)]
    picture = Image.fromarray(to_uint8(torch.cat(rows, dim=1).cpu()))
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC).save(path)


@torch.no_grad()
def evaluate_vae(model, judge, args):
    images = make_drawings(args.runs, 1600, UNSEEN).to(model.device)
    objects, styles = pairs(len(images), model.device)
    x = images.float() / 255
    y = torch.cat([model.decode(z) for z in encode_all(model.vae, images).split(100)])
    error = (x - y).square().mean((1, 2, 3))
    out = {"psnr_db": tell("VAE reconstruction PSNR, dB", round((-10 * error.log10()).mean().item(), 2))}
    for name, pictures in (("drawings", x), ("reconstructions", y)):
        o, s, *_ = judge.verdict(pictures)
        out[f"judge_{name}"] = tell(f"judge on unseen {name}", {"object": share(o == objects),
                                                                "style": share(s == styles)})
    show = [o + 10 * s for s in range(8) for o in range(10)]
    grid(torch.cat([torch.cat([x[show[i:i + 10]], y[show[i:i + 10]]]) for i in range(0, 80, 10)]), 20,
         PICTURES / "reconstructions.png")
    return out


@torch.no_grad()
def evaluate_samples(model, judge, args, each=5):
    """Images sampled from all 80 captions, and the hook's outputs along the way."""
    prompts = [drawings.caption(OBJECTS[o], STYLES[s]) for s in range(8) for o in range(10)] * each
    images, hooks = [], []
    for i in range(0, len(prompts), 80):
        generator = torch.Generator(model.device).manual_seed(10_000 + i)
        z, h = capture(model, prompts[i:i + 80], generator, args.guidance)
        images.append(model.decode(z))
        hooks.append(h.flatten(0, 2) if i == 0 else h[::5].flatten(0, 2))
    images = torch.cat(images)
    objects, styles = pairs(len(images), model.device)
    o, s, *_ = judge.verdict(images)
    grid(images[:80], 10, PICTURES / "samples.png")
    tell(f"samples, guidance {args.guidance}: by object",
         {OBJECTS[k]: round((o == objects)[objects == k].float().mean().item(), 2) for k in range(10)})
    tell("by style", {STYLES[k]: round((s == styles)[styles == k].float().mean().item(), 2) for k in range(8)})
    out = {"guidance": args.guidance, "object": share(o == objects), "style": share(s == styles)}
    return tell("samples the judge names right", out), torch.cat(hooks)


@torch.no_grad()
def evaluate_sae(model, h):
    """FVU at the SAE's k, active features, and the share of features that fire at least once: h (n, D)."""
    h = h.to(model.device).float()
    acts = torch.zeros(model.sae.features, device=model.device)
    h_hat = []
    for part in h.split(4096):
        code = model.sae.encode(part)
        acts += (code > 0).sum(0)
        h_hat.append(model.sae.decode(code))
    out = {"fvu": round(fvu(h, torch.cat(h_hat)).item(), 4), "k": model.sae.k, "features": model.sae.features,
           "alive": round((acts > 0).float().mean().item(), 4), "vectors": len(h)}
    return tell("SAE", out)


@torch.no_grad()
def feature_activations(model, images, captions, t, of=None):
    """Mean activation of every feature on drawings noised to time step t: (n, F). `captions`: one
    a drawing, or None for "". `of`: what is looked at instead of the features, of the hook's output (B, S, D).
    """
    z, out = encode_all(model.vae, images), []
    generator = torch.Generator(model.device).manual_seed(77)
    for i in range(0, len(z), 80):
        part = z[i:i + 80]
        text = model.embed(captions[i:i + 80] if captions else [""]).expand(len(part), -1, -1)
        steps = torch.full((len(part),), t, device=model.device)
        x = model.schedule.add_noise(part, torch.randn(part.shape, generator=generator, device=model.device), steps)
        h = model.unet(x, steps, text, until=model.hook_point)
        out.append((of or model.sae.pre_acts)(h.flatten(2).transpose(1, 2)).mean(1))
    return torch.cat(out)


def find_concepts(acts, objects, styles):
    """Features whose TOP strongest images share an object, a style or a pair in SHARE of the cases: a list, strongest
    first.

    The most specific claim that holds is kept. A feature that is silent on one of its TOP images has no list to judge
    by.
    """
    top = acts.topk(TOP, dim=0)                                                                 # (TOP, F)
    concepts = []
    for f in range(acts.shape[1]):
        if top.values[-1, f] <= 0:
            continue
        o, s = objects[top.indices[:, f]].tolist(), styles[top.indices[:, f]].tolist()
        for kind, values in (("pair", list(zip(o, s))), ("object", o), ("style", s)):
            value, n = Counter(values).most_common(1)[0]
            if n >= SHARE * TOP:
                concepts.append({"feature": f, "kind": kind, "object": OBJECTS[value[0] if kind == "pair" else value]
                                 if kind != "style" else None,
                                 "style": STYLES[value[1] if kind == "pair" else value] if kind != "object" else None,
                                 "share": n / TOP, "activation": round(top.values[:, f].mean().item(), 5),
                                 "examples": top.indices[:6, f].tolist()})
                break
    return sorted(concepts, key=lambda c: -c["activation"])


def evaluate_concepts(model, args, n=4800):
    images = make_drawings(args.runs, n, UNSEEN).to(model.device)
    objects, styles = pairs(n, model.device)
    captions = [drawings.caption(OBJECTS[o], STYLES[s]) for o, s in zip(objects.tolist(), styles.tolist())]
    t = model.settings.get("timestep", args.timestep)
    out = {"timestep": t}
    for name, texts in (("empty prompt", None), ("captions", captions)):
        found = find_concepts(feature_activations(model, images, texts, t), objects, styles)
        count = {"all": len(found), **Counter(c["kind"] for c in found),
                 "objects covered": len({c["object"] for c in found} - {None}),
                 "styles covered": len({c["style"] for c in found} - {None})}
        out[name] = tell(f"concept features, {name}, t {t}", count)
        if texts is None:
            write_json(args.out / "concepts.json", {"timestep": t, "prompt": "", "features": found})
    return out


def right(concepts, o, s):
    """Whether the judge's object and style indices agree with each concept: (n,) bool."""
    return torch.tensor([(c["object"] in (None, OBJECTS[a])) and (c["style"] in (None, STYLES[b])) for c, a,
                         b in zip(concepts, o, s)],
                        dtype=torch.bool)


def named(judge, concepts, results):
    """Shares of pictures that the judge names right, all and by kind; mean activation, verdicts; and (n,) bool."""
    images = torch.stack([r.image for r in results]).to(next(judge.parameters()).device)
    o, s, *_ = judge.verdict(F.interpolate(images, (drawings.SIZE, drawings.SIZE)))
    agree = right(concepts, o.tolist(), s.tolist())
    out = {"all": share(agree)}
    for kind in ("object", "style", "pair"):
        chosen = torch.tensor([c["kind"] == kind for c in concepts])
        if chosen.any():
            out[kind] = share(agree[chosen])
    out["activation"] = round(sum(r.activation for r in results) / len(results), 4)
    out["verdicts"] = dict(Counter(r.verdict for r in results))
    return out, agree


def legibility(model, judge, concepts, config, t, batch_size=8):
    """Visualise each concept feature once and let the judge name the picture: shares right, by kind; with the finish
    those of the finished pictures too.
    """
    jobs = [Job(feature=c["feature"], timestep=t, seed=SEED) for c in concepts]
    began = time.time()
    results = []
    for i in range(0, len(jobs), batch_size):
        results += visualize(model, jobs[i:i + batch_size], config, batch_size)
        done = len(results)
        print(f"\r{done}/{len(jobs)} features, {(time.time() - began) / done * (len(jobs) - done):.0f} s left  ",
              end="", file=sys.stderr)
    print(file=sys.stderr)
    out, agree = named(judge, concepts, results)
    if config.finish:
        out["finished"], _ = named(judge, concepts, [r.finished for r in results])
    return out, results, agree


def try_settings(model, judge, args):
    """The legibility of other settings on every args.every-th concept feature, for choosing them."""
    stored = json.loads((args.out / "concepts.json").read_text())
    changes = json.loads(args.try_)
    t = changes.pop("timestep", stored["timestep"])
    numbers, *_ = legibility(model, judge, stored["features"][::args.every],
                             dataclasses.replace(configure(model.settings), **changes), t)
    tell(args.try_, numbers)


def chosen_by_rule(concepts):
    """For every object and then every style the concept feature of it alone with the largest activation: at most 18."""
    first = lambda key, name: next((c for c in concepts if c["kind"] == key and c[key] == name), None)
    return [c for c in (*(first("object", o) for o in OBJECTS), *(first("style", s) for s in STYLES)) if c]


def choose_feature(model, judge, args, seeds=(1024, 1111, 4359)):
    """The feature that `python featviz.py` shows: of the figure's, the one of whose pictures at its peaks under the
    default settings the judge surely names most right, by the lower end of the 95% interval of the share; the stronger
    of equals.
    """
    scores = {}
    for c in chosen_by_rule(json.loads((args.out / "concepts.json").read_text())["features"]):
        times = profile.peaks(profile.profile(model.activity, "feature", c["feature"]))
        results = visualize(model, [Job(feature=c["feature"], timestep=t, seed=s) for t in times for s in seeds],
                            configure(model.settings, finish=False))
        o, s, *_ = judge.verdict(torch.stack([r.image for r in results]).to(model.device))
        scores[c["feature"]] = share(right([c] * len(results), o.tolist(), s.tolist()))
        tell(f"at the peaks, feature {c['feature']}, {c['object'] or c['style']}", scores[c["feature"]])
    best = max(scores, key=lambda f: scores[f]["interval"][0])
    write_json(args.out / "featviz.json", model.settings | {"feature": best})
    return {str(f): s for f, s in scores.items()}


def make_figure(model, judge, args, seeds=(1024, 1111, 4359)):
    """A row a feature in two columns of rows: six strongest unseen drawings, then its visualisation from three seeds.
    Returns how many of the three the judge names right, by feature.
    """
    stored = json.loads((args.out / "concepts.json").read_text())
    concepts, t = chosen_by_rule(stored["features"]), stored["timestep"]
    jobs = [Job(feature=c["feature"], timestep=t, seed=s) for c in concepts for s in seeds]
    config = configure(model.settings, finish=False)
    shown = torch.stack([r.image for r in visualize(model, jobs, config)])
    o, s, *_ = judge.verdict(shown.to(model.device))
    agree = right([c for c in concepts for _ in seeds], o.tolist(), s.tolist()).reshape(-1, len(seeds))
    named = tell("figure: named right by the judge", {f"{c['feature']} {c['object'] or c['style']}": int(a.sum())
                                                      for c, a in zip(concepts, agree)})
    edge, label, gap, n = 80, 150, 12, 6
    half = -(-len(concepts) // 2)
    width = label + (n + len(seeds)) * edge + 3 * gap
    sheet = Image.new("RGB", (2 * width, 28 + half * (edge + 6)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column in range(min(2, len(concepts))):
        pen.text((column * width + label, 6), "strongest drawings", fill="black", font=font)
        pen.text((column * width + label + n * edge + gap, 6), "visualised", fill="black", font=font)
    for i, c in enumerate(concepts):
        x, y = (i // half) * width, 28 + (i % half) * (edge + 6)
        pen.text((x + 8, y + 22), f"feature {c['feature']}\n{c['object'] or c['style']}", fill="black", font=font)
        tiles = [Image.fromarray(drawings.drawing(k, UNSEEN)) for k in c["examples"]]
        tiles += [Image.fromarray(to_uint8(shown[len(seeds) * i + k])) for k in range(len(seeds))]
        for k, tile in enumerate(tiles):
            sheet.paste(tile.resize((edge, edge), Image.Resampling.BICUBIC),
                        (x + label + k * edge + (gap if k >= n else 0), y))
    sheet.save(PICTURES / "features.png")
    return named


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", action="store_true")
    parser.add_argument("--try", dest="try_", metavar="JSON", help="settings of config.Config, and timestep")
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"))
    parser.add_argument("--out", type=Path, default=Path("weights/toy"))
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--timestep", type=int, default=300,
                        help="where concepts are looked for, if featviz.json does not say")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model, judge = load(args.out, args.device), load_judge(args.out, args.device)
    path = args.out / "evaluation.json"
    numbers = json.loads(path.read_text()) if path.exists() else {}
    if args.figure or args.choose or args.try_:                 # steered priors and peaks are those of a capture
        if not (folder := profile.find(model, Path("out"))):
            raise SystemExit(f"evaluate: {args.out} has no capture; run {full(model)}")
        model = profile.attach(model, folder)
    if args.figure:
        numbers["figure"] = make_figure(model, judge, args)
    elif args.choose:
        numbers["default_settings"] = choose_feature(model, judge, args)
    elif args.try_:
        return try_settings(model, judge, args)
    elif args.concepts:
        numbers["concepts"] = evaluate_concepts(model, args)
    else:
        numbers["vae"] = evaluate_vae(model, judge, args)
        numbers["samples"], hooks = evaluate_samples(model, judge, args)
        numbers["sae"] = evaluate_sae(model, hooks)
        numbers["concepts"] = evaluate_concepts(model, args)
    write_json(path, numbers)


if __name__ == "__main__":
    main()
