"""How the cost of an ascent grows: over batch, latent size, number of features, number of
processes; drawn with Pillow alone.
"""
import os
import subprocess
import sys
import tempfile
import time
from math import log10

import torch
from PIL import Image, ImageDraw, ImageFont

from bench import ways
from weights.load import find, load
from config import Job, configure
from ascent import stream
from weights.preflight import free_bytes, predict

STEPS = 10                                                      # of each ascent; cost is linear in them
INK = {"toy": "#b5541c", "full": "#1c5fb5"}


def step_seconds(model, batch, rounds=4):
    steps = ways.ours(model, ways.jobs_of(model, batch), ways.endless(model))
    return ways.summary(ways.alternate({"ours": lambda: next(steps)}, rounds, model.device)["ours"])["seconds"]


def over_batch(model, found, most):
    """[[rows, seconds a step and row]]"""
    out = []
    for batch in (b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b <= most):
        if sum(predict(found, model.dtype, batch)) > 0.6 * (free_bytes(model.device) or 8e9):
            break
        out.append([batch, step_seconds(model, batch) / batch])
    return out


def over_size(model, widths):
    """[[latent width, seconds a step]] of one job; the UNet takes other widths than it was trained at."""
    out, own = [], model.latent_shape
    for width in widths:
        model.latent_shape = (own[0], width, width)
        out.append([width, step_seconds(model, 1)])
    model.latent_shape = own
    return out


def over_features(model, counts):
    """[[features, seconds]] for STEPS steps of each and all scores, in the default batch size."""
    out, config = [], configure(model.settings, prior="noise", num_steps=STEPS)
    for n in counts:
        began = time.perf_counter()
        for _ in stream(model, [Job(feature=f, timestep=600, seed=1) for f in range(n)], config):
            pass
        out.append([n, time.perf_counter() - began])
    return out


def over_processes(weights, device, counts, features, threads=1):
    """[[processes, seconds]] for `features` features by `python featviz.py --shard`, imports and loading included; on
    CPUs each process has `threads` threads, on GPUs a card.
    """
    out = []
    for n in counts:
        with tempfile.TemporaryDirectory() as folder:
            began, running = time.perf_counter(), []
            for i in range(n):
                flags = ["--weights", weights, "--feature", *range(features), "--seed", 1, "--timestep", 600, "--prior",
                         "noise",
                         "--num-steps", 5 * STEPS, "--frames", 0, "--shard", f"{i}/{n}", "--out", folder,
                         "--device", f"cuda:{i}" if device == "cuda" else device]
                running.append(subprocess.Popen([sys.executable, "featviz.py", "--no-finish", *map(str, flags)],
                                                stdout=subprocess.DEVNULL,
                                                stderr=subprocess.DEVNULL,
                                                env=os.environ | {"OMP_NUM_THREADS": str(threads)}))
            if any(process.wait() for process in running):
                raise RuntimeError(f"featviz.py --shard I/{n} failed; run one by hand to see why")
            out.append([n, time.perf_counter() - began])
    return out


def growth(sizes, results, args, path):
    """All four for the toy, batch and latent size at full size too; draws `path`."""
    cuda = args.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    out = results.get("growth", {})
    for name, folder in sizes.items():
        model, found = load(folder, args.device, dtype), find(folder)
        full = name == "full"
        most = (64 if cuda else 4) if full else (256 if cuda else 64)
        out[name] = {"dtype": str(dtype)[6:], "batch": over_batch(model, found, 2 if args.quick else most),
                     "size": over_size(model, ((32, 64) if args.quick or not cuda else (32, 64, 96, 128))
                                       if full else (8, 16, 32, 64))}
        if not full:
            out[name]["features"] = over_features(model, (8, 32) if args.quick else (8, 16, 32, 64, 128))
            many = torch.cuda.device_count() if cuda else os.cpu_count()
            out[name]["processes"] = over_processes(folder, args.device, [n for n in (1, 2, 4, 8) if n <= many], 8
                                                    if args.quick else 64)
    draw(out, path)
    return out


# --- the figure ------------------------------------------------------------------------------------------------------

PANELS = (("batch", "jobs in a batch", "seconds a step and job"), ("size", "latent width", "seconds a step"),
          ("features", "features", "seconds, 10 steps each"), ("processes", "processes, one thread each",
                                                               "seconds, 64 features"))
EDGE, LEFT, TOP = 330, 62, 34


def draw(results, path):
    """Four panels, both axes logarithmic: a straight line of slope 1 is proportional cost."""
    sheet = Image.new("RGB", (len(PANELS) * EDGE, EDGE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (key, across, up) in enumerate(PANELS):
        lines = {name: [p for p in found[key]] for name, found in results.items() if found.get(key)}
        if lines:
            panel(pen, font, i * EDGE, lines, across, up)
    sheet.save(path, optimize=True)


def panel(pen, font, x0, lines, across, up):
    """One panel at x0: lines {name: [[x, y]]}."""
    points = [p for line in lines.values() for p in line]
    bounds = [(min(p[k] for p in points) / 1.2, max(p[k] for p in points) * 1.2) for k in (0, 1)]
    box = (x0 + LEFT, TOP, x0 + EDGE - 14, EDGE - 46)
    share = lambda v, k: (log10(v) - log10(bounds[k][0])) / (log10(bounds[k][1]) - log10(bounds[k][0]))
    at = lambda p: (box[0] + share(p[0], 0) * (box[2] - box[0]), box[3] - share(p[1], 1) * (box[3] - box[1]))
    pen.rectangle(box, outline="#888")
    pen.text((x0 + LEFT, 10), up, fill="black", font=font)
    pen.text((x0 + LEFT, EDGE - 24), across, fill="black", font=font)
    for x in sorted({p[0] for p in points}):
        px = at((x, bounds[1][0]))[0]
        pen.line((px, box[3], px, box[3] + 4), fill="#888")
        pen.text((px, box[3] + 6), f"{x:g}", fill="black", font=font, anchor="ma")
    for y in ticks(*bounds[1]):
        py = at((bounds[0][0], y))[1]
        pen.line((box[0] - 4, py, box[0], py), fill="#888")
        pen.text((box[0] - 7, py), f"{y:g}", fill="black", font=font, anchor="rm")
    for name, line in lines.items():
        pen.line([at(p) for p in line], fill=INK[name], width=2)
        for p in line:
            px, py = at(p)
            pen.ellipse((px - 3, py - 3, px + 3, py + 3), fill=INK[name])
        px, py = at(line[-1])
        pen.text((px - 6, py - 18), {"toy": "toy", "full": "full size"}[name], fill=INK[name], font=font, anchor="ra")


def ticks(low, high):
    """1, 2 and 5 times powers of ten between low and high; fewer where there would be many."""
    found = [m * 10.0 ** e for e in range(-6, 7) for m in (1, 2, 5) if low <= m * 10.0 ** e <= high]
    return found if len(found) < 7 else [t for t in found if f"{t:e}"[0] == "1"]
