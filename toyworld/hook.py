"""What the toy's hook point says, and how much it matters: without it, and when something is added there.

    python -m toyworld.hook [--push] [--steer] [--out weights/toy]     writes what it prints into evaluation.json

Drawings are unseen ones, as in evaluate.py. --push takes a few minutes on a core, --steer ten.
"""
import argparse
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from steering import sample
from toyworld import drawings
from toyworld.denoiser import NAME, names
from toyworld.drawings import OBJECTS, STYLES
from toyworld.evaluate import UNSEEN, feature_activations, pairs, right, share, tell
from toyworld.judge import load_judge
from toyworld.train import encode_all, make_drawings, write_json
from weights.load import load

NOISE = 500                 # number of a feature's first noise; by noises before it the SAE's settings were chosen


@contextmanager
def handing_on(module, change):
    """While it lasts, a module hands on change(its output)."""
    handle = module.register_forward_hook(lambda module, inputs, h: change(h))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def shift(model, runs, n=400, times=(100, 300, 600, 900)):
    """How much the hook point matters: the change of the predicted clean latent z0, whose own deviation is 1, when the
    hook's output is replaced by its mean over drawings and positions; with the empty prompt and with the captions.

        z0 = (x_t - sqrt(1 - abar_t) UNet(x_t, t)) / sqrt(abar_t),   shift(t) = rms(z0 - z0 with the mean)
    """
    objects, styles = pairs(n, "cpu")
    captions = [drawings.caption(OBJECTS[o], STYLES[s]) for o, s in zip(objects.tolist(), styles.tolist())]
    z = encode_all(model.vae, make_drawings(runs, 1600, UNSEEN)[:n].to(model.device))
    hook, out = model.unet.get_submodule(model.hook_point), {}
    for name, texts in (("empty prompt", [""]), ("captions", captions)):
        context = model.embed(texts).expand(n, -1, -1)
        for t in times:
            eps = torch.randn(z.shape, generator=torch.Generator(model.device).manual_seed(t), device=model.device)
            steps = torch.full((n,), t, device=model.device)
            x = model.schedule.add_noise(z, eps, steps)
            mean = model.unet(x, steps, context, until=model.hook_point).mean((0, 2, 3), keepdim=True)  # (1, D, 1, 1)
            whole = model.unet(x, steps, context)
            with handing_on(hook, mean.expand_as):
                change = (model.unet(x, steps, context) - whole).square().mean().sqrt()
            abar = model.schedule.alphas_cumprod[t]
            out.setdefault(name, {})[str(t)] = round(((1 - abar) / abar).sqrt().item() * change.item(), 3)
    return tell("shift without the hook, by t", out)


@torch.no_grad()
def said(model, runs, n=1600, times=(900, 750, 600, 450, 300, 100)):
    """What the hook's output says by the empty prompt, in the `names` that it was taught: of how many unseen drawings
    the largest of the objects' names, and of the styles', is the drawing's own; and what share of its variance over
    drawings and places lies along the names.
    """
    labels = dict(zip(("object", "style"), pairs(n, model.device)))
    images, directions, out = make_drawings(runs, n, UNSEEN).to(model.device), names().to(model.device) / NAME, {}

    def along(h):
        """h (B, S, D) on the 18 names and on its own axes, and the squares of both: (B, S, 2 (18 + D))."""
        x = torch.cat([h @ directions.T, h], dim=-1)
        return torch.cat([x, x.square()], dim=-1)

    for t in times:
        mean, square = feature_activations(model, images, None, t, along).chunk(2, dim=1)       # (n, 18 + D) each
        spread = (square.mean(0) - mean.mean(0).square()).split((len(directions), directions.shape[1]))
        loudest = dict(zip(labels, mean.split((len(OBJECTS), len(STYLES), directions.shape[1]), dim=1)))
        out[str(t)] = {kind: share(loudest[kind].argmax(1) == y) for kind, y in labels.items()}
        out[str(t)]["variance"] = round((spread[0].sum() / spread[1].sum()).item(), 3)
    return tell("what the hook says, by t", out)


@torch.no_grad()
def pushes(model, runs, n=160, times=(980, 900, 600)):
    """Whether what a caption does at the hook point can be added there, and at all positions alike, as steering adds a
    feature: how much smaller than with the empty prompt the error of the predicted clean latent is.

        D_c = mean over n drawings of h(x_t, "A Tree image") - h(x_t, ""),         (D, S, S), c the object or the style

    "caption": with the drawing's own; "pushed": "" + D_c; "alike": "" + D_c's mean over positions; "wrong": alike, of
    another c; "share": of D's power, that of its mean over positions. Errors are of n other drawings.
    """
    z = encode_all(model.vae, make_drawings(runs, 1600, UNSEEN)[:2 * n].to(model.device))
    hook, out = model.unet.get_submodule(model.hook_point), {}
    labels = dict(zip(("object", "style"), (y[n:] for y in pairs(2 * n, "cpu"))))
    texts = {"object": [drawings.caption(o, None) for o in OBJECTS],
             "style": [drawings.caption(None, s) for s in STYLES]}
    context = lambda captions: model.embed(captions).expand(n, -1, -1)
    for t in times:
        eps = torch.randn(z.shape, generator=torch.Generator(model.device).manual_seed(t), device=model.device)
        steps, abar = torch.full((2 * n,), t, device=model.device), model.schedule.alphas_cumprod[t]
        (x, seen), steps = model.schedule.add_noise(z, eps, steps).split(n), steps[:n]

        def error(captions, add=None):
            off = model.unet(seen, steps, context(captions), add=add) - eps[n:]
            return ((1 - abar) / abar * off.square().mean()).item()

        at_hook = lambda caption: model.unet(x, steps, context([caption]), until=model.hook_point).mean(0)
        empty, without = at_hook(""), error([""])
        for kind, y in labels.items():
            D = torch.stack([at_hook(text) for text in texts[kind]]) - empty
            alike = D.mean((2, 3))                                                              # (classes, D)
            with handing_on(hook, lambda h: h + D[y]):
                pushed = error([""])
            found = {"caption": error([texts[kind][c] for c in y.tolist()]), "pushed": pushed,
                     "alike": error([""], {model.hook_point: alike[y]}),
                     "wrong": error([""], {model.hook_point: alike[(y + 3) % len(D)]})}
            share = (alike.square().mean() / D.square().mean()).item()
            gains = {name: round(without - value, 4) for name, value in found.items()}
            out.setdefault(kind, {})[str(t)] = gains | {"share": round(share, 3)}
    for kind, numbers in out.items():
        tell(f"less error by a caption of the {kind}, and by pushes", numbers)
    return out


@torch.no_grad()
def steer(model, judge, concepts, scales=(1, 3, 5, 10, 20), noises=4, steps=25, batch=100):
    """Samples by the empty prompt, scale * activation * W_dec[f] added at the hook at all steps: shares named right.

    A feature's activation is the mean over its strongest drawings (concepts.json). The scale that is best for every
    other feature of the list, first, third and so on, is reported for the rest.
    """
    jobs = [(c, n) for c in concepts for n in range(noises)]
    agree, began = [], time.time()
    for i, scale in enumerate(scales):
        verdicts = []
        for k in range(0, len(jobs), batch):
            part = jobs[k:k + batch]
            noise = torch.cat([torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(
                1_000 * c["feature"] + NOISE + n)) for c, n in part]).to(model.device)
            strength = torch.tensor([c["activation"] for c, _ in part], device=model.device)[:, None]
            push = {model.hook_point: scale * strength * model.sae.W_dec[[c["feature"] for c, _ in part]]}
            z = sample(model, noise, model.embed([""]), "ddim", steps, add=lambda t: push)
            o, s, *_ = judge.verdict(model.decode(z))
            verdicts.append(right([c for c, _ in part], o.tolist(), s.tolist()))
            done = i * len(jobs) + k + len(part)
            left = (time.time() - began) / done * (len(jobs) * len(scales) - done)
            print(f"\rsteering: scale {scale}, {left:.0f} s left   ", end="", file=sys.stderr)
        agree.append(torch.cat(verdicts))
    print(file=sys.stderr)
    agree, chooses = torch.stack(agree), torch.tensor([i // noises % 2 == 0 for i in range(len(jobs))])
    best = agree[:, chooses].float().mean(1).argmax().item()
    out = {"noises": noises, "by scale": {str(scale): share(a) for scale, a in zip(scales, agree)},
           "best scale": scales[best], "all others, at the best": share(agree[best, ~chooses])}
    for kind in ("object", "style"):
        of = ~chooses & torch.tensor([c["kind"] == kind for c, _ in jobs])
        out[kind] = share(agree[best, of])
    return tell("steered samples named right", out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--push", action="store_true", help="whether what a caption does there can be added")
    parser.add_argument("--steer", action="store_true", help="whether a concept feature's direction makes its concept")
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"))
    parser.add_argument("--out", type=Path, default=Path("weights/toy"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model, path, new = load(args.out, args.device), args.out / "evaluation.json", {}
    if args.push:
        new["pushes"] = pushes(model, args.runs)
    if args.steer:
        concepts = json.loads((args.out / "concepts.json").read_text())["features"]
        new["steering"] = steer(model, load_judge(args.out, args.device), concepts)
    if not new:
        new["hook"], new["said"] = shift(model, args.runs), said(model, args.runs)
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | new)


if __name__ == "__main__":
    main()
