"""A whole sparse autoencoder on disk and in the pages: 20,480 features x 4 time steps x 5 seeds, 409,600 results.

    python -m bench.folder --out FOLDER                     all of it, in a folder that is taken away at the end
    python -m bench.folder --out FOLDER --features 1000     part of it: what a feature costs must not grow with it

Nobody computed these results. A record is as long as one of Stable Diffusion's. Pictures are small, and those of one
kind are hard links to a few files. Each thing that is measured runs in a process of its own, which tells its seconds,
the seconds in which it was at work (fewer where the machine has more to do, more where several processors take part),
and its peak memory.
"""
import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from config import HOOK_POINT, SEEDS, Config, Job
from pages import files
from pages.atlas import write_atlas
from pages.feature import write_page
from pages.sheet import write_sheet

NAME, TIMES = "made_up", (0, 250, 500, 750)
KINDS = 16                  # of pictures; on ext4 a file has at most 65,000 names
EDGE, FRAMES, HOOK = 64, 8, 16                                  # pixels, pictures in a strip, positions a side
CURVES = ("activation", "update_norm", "gradient_norm", "moment", "range", "total_variation")
SAMPLE = 100                # features whose pages and sheets are made
WORDS = ("Tree", "Flower", "House", "Cat", "Tower", "Sea", "Winter", "Cartoon")
BLANK = Job(feature=987654321, timestep=987654322, seed=987654323)              # in a template; then three activations
REACHED = (987654324, 987654325, 987654326)


# --- results that nobody computed -------------------------------------------------------------------------------------

def stand_in():
    """As much of a model as a recipe asks for."""
    prints = {f"part_{i:02d}/diffusion_pytorch_model.safetensors": f"{i:02x}" * 32 for i in range(16)}
    return SimpleNamespace(name=NAME, hook_point=HOOK_POINT, fingerprints=prints, dtype="torch.float32",
                           device=SimpleNamespace(type="cpu"))


def image(rng, width, kind):
    """Bytes of a picture of soft colours."""
    y, x = np.mgrid[:EDGE, :width] / EDGE
    waves = [np.sin(a * x + b * y + c) / 2 + 0.5 for a, b, c in rng.normal(size=(3, 3)) * 5]
    file = io.BytesIO()
    Image.fromarray((np.stack(waves, axis=-1) * 255).astype(np.uint8)).save(file, format=kind)
    return file.getvalue()


def beside(rng):
    """{suffix: bytes} of what lies beside a record."""
    return {".png": image(rng, EDGE, "png"), ".finished.png": image(rng, EDGE, "png"),
            ".steps.jpg": image(rng, FRAMES * EDGE, "jpeg"), ".safetensors": rng.bytes(2 * 4 * 64 * 64 * 4)}


def template(rng, pictures):
    """A record's text in which BLANK's numbers and REACHED stand for those of a result."""
    numbers = lambda *shape: rng.random(shape).tolist()

    def told(verdict, activation, steps, curves):
        scores = {"activation_start": 0.1, "activation_no_noise": 1.0, "latent_mean": 0.0, "latent_std": 1.0,
                  "latent_share_beyond_3": 0.01, "rank": 3, "activation": activation,
                  "activation_reencoded": REACHED[2]}
        return {"verdict": verdict, "scores": scores, "history": {name: numbers(steps) for name in curves},
                "others": [[i, a] for i, a in enumerate(numbers(10))], "heat": numbers(HOOK, HOOK)}

    recipe = files.recipe(stand_in(), BLANK, Config(), Config())
    made = {"recipe": recipe, **told("excited", REACHED[0], 100, CURVES), "nearest_channel": 7,
            "stored_steps": list(range(FRAMES)), "finished": told("raised", REACHED[1], 30, CURVES[:2]),
            "sha256": {suffix: files.sha256(data) for suffix, data in pictures.items()},
            "bytes": {suffix: len(data) for suffix, data in pictures.items()}}
    return json.dumps(made, indent=1, sort_keys=True, allow_nan=False) + "\n"


def filled(text, job, reached):
    for blank, value in zip((BLANK.feature, BLANK.timestep, BLANK.seed, *REACHED),
                            (job.feature, job.timestep, job.seed, *reached)):
        text = text.replace(str(blank), str(value))
    return text


def known(rng, peak):
    """The text of activity.json: a profile with one peak."""
    curve = np.exp(-np.abs(np.arange(1001) - peak) / 200)
    return json.dumps({"profile": curve.tolist(), "largest": (2 * curve).tolist(), "peaks": [peak], "images": 6100,
                       "concept": [str(word) for word in rng.choice(WORDS, rng.integers(3), replace=False)],
                       "examples": {}, "ever_among_the_top": True}, indent=1) + "\n"


def jobs(features):
    return [Job(feature=f, timestep=t, seed=seed) for f in range(features) for t in TIMES for seed in SEEDS]


def make(out, features):
    """The results of so many features, and what a capture knows of each; their pictures first, as in a run."""
    rng, kinds = np.random.default_rng(0), []
    for kind in range(KINDS):
        pictures = beside(rng)
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        for suffix, data in pictures.items():
            (out / f"pictures/{kind}{suffix}").write_bytes(data)
        kinds.append(template(rng, pictures))
    model, paths = stand_in(), {}
    for job in jobs(features):
        folder = files.folder_of(out, model.name, model.hook_point, job.kind, job.target) / f"t{job.timestep:04d}"
        paths[job] = f"{folder}/seed_{job.seed}"
        if job.seed == SEEDS[0]:
            folder.mkdir(parents=True)
        for suffix in pictures:
            os.link(out / f"pictures/{job.feature % KINDS}{suffix}", paths[job] + suffix)
    time.sleep(0.1)                                             # a link is a change; the clock of files is coarse
    for job, path in paths.items():
        with open(f"{path}.json", "w", encoding="utf-8") as file:
            file.write(filled(kinds[job.feature % KINDS], job, rng.gamma(4, 0.5, 3).round(7).tolist()))
    texts = [known(rng, int(peak)) for peak in rng.integers(1000, size=200)]
    for feature in range(features):
        folder = files.folder_of(out, model.name, model.hook_point, "feature", feature)
        (folder / "activity.json").write_text(texts[feature % len(texts)])


# --- what people wait for ---------------------------------------------------------------------------------------------

def go_on(out, features):
    """What a run looks at before it begins: as featviz.run, where everything is there already."""
    config, steps = Config(), range(FRAMES)
    made = files.recipes(stand_in(), jobs(features), config, config)
    recipes = {(job, config): recipe for job, recipe in made.items()}
    why = {key: files.lacking(out, recipe, steps) for key, recipe in recipes.items()}
    assert len(why) == features * len(TIMES) * len(SEEDS) and not any(why.values())


def sample(out, features):
    """Folders of features, evenly."""
    every = max(1, features // SAMPLE)
    return [files.folder_of(out, NAME, HOOK_POINT, "feature", f) for f in range(0, features, every)][:SAMPLE]


def pages(out, features):
    names = {path.name for path in (out / NAME).iterdir()}
    for folder in sample(out, features):
        write_page(folder, names)


def sheets(out, features):
    for folder in sample(out, features):
        write_sheet(folder)


def atlas(out, features):
    write_atlas(out / NAME)


def opened(out, features):
    """In Chromium, where there is one; it is no process of this one's."""
    from tests.browser.chromium import Chromium
    browser = Chromium(out / "profile")
    try:
        began = time.monotonic()
        browser.open(out / NAME / "index.html")
        browser.settled()
        return time.monotonic() - began
    finally:
        browser.close()


MEASURED = {                # name -> (what, over how many of the features its time is)
    "to find what is finished": (go_on, None), "pages": (pages, SAMPLE), "sheets": (sheets, SAMPLE),
    "atlas": (atlas, None), "atlas, again": (atlas, None)}


def busy():
    """Seconds at work of this process and of those that it started and waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def peak():
    """Bytes at most of this process, and as much for each processor as the largest of those that it started."""
    own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * (own + os.cpu_count() * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def alone(work, out, features, answers):
    """In a process of its own: (seconds, seconds at work, peak memory in bytes)."""
    began, before = time.monotonic(), busy()
    work(out, features)
    answers.put((time.monotonic() - began, busy() - before, peak()))


def measure(out, features):
    """{name: (seconds, seconds at work, peak memory in bytes)}."""
    fresh, found = multiprocessing.get_context("spawn"), {}
    for name, (work, _) in MEASURED.items():
        answers = fresh.Queue()
        process = fresh.Process(target=alone, args=(work, out, features, answers))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name}: failed")
        found[name] = answers.get()
    return found


def size(folder):
    """(files, bytes) below a folder."""
    sizes = [os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names]
    return len(sizes), sum(sizes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder; it is removed at the end")
    parser.add_argument("--features", type=int, default=20480)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out}: is there already")
    try:
        make(args.out, args.features)
        count, total = size(args.out / NAME)
        print(f"{args.features:,} features, {count:,} files, {total / 1e9:.2f} GB, hard links counted as files\n\n"
              "| | seconds | at work | at work, ms a feature | peak memory, GB |\n|---|---|---|---|---|")
        for name, (seconds, worked, memory) in measure(args.out, args.features).items():
            each = 1000 * worked / (min(args.features, SAMPLE) if MEASURED[name][1] else args.features)
            print(f"| {name} | {seconds:.1f} | {worked:.1f} | {each:.2f} | {memory / 1e9:.2f} |")
        print(f"\nThe atlas has {(args.out / NAME / 'index.html').stat().st_size / 2**20:.1f} MiB"
              + (f" and opens in {opened(args.out, args.features):.1f} s" if shutil.which("chromium") else ""))
    finally:
        shutil.rmtree(args.out, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
