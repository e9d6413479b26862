"""How fast the ascent is, against the original's way and against the machine: python bench/speed.py

Sections, each written to bench/speed_<device>.json as soon as it is done, so that a run can be stopped and gone on with
--only:

    step      seconds a step, the ways of ways.py side by side in one process, in turns; medians
    memory    peak memory of loading and a few steps, a process for each
    toy       from the command to pictures, and to the activation that the original's 100 steps reach (weights/toy)
    growth    seconds a step and job against the batch; seconds for many features against the number of processes
    space     the latent against the pixels in front of the encoder (--space): operations, seconds of the processor and
              peak memory of a step, one job, float32
    paper     all features of an SAE on H200s: a computation from counted operations, no measurement
    table     print the Markdown tables of what is in the JSON

Full size is Stable Diffusion 1.4's with SAeUron's SAE, random numbers in a folder of its own (--folder, 4.5 GB, kept
for the next run). Every number is of an otherwise idle machine only if nothing else runs on it.
"""
import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, it is not started from the root by itself

import torch

from bench import tables, ways
from weights.load import find, load
from config import QUICK, Job, configure
from weights.preflight import free_bytes, predict
from weights.disk import replacing

TOY, T = ROOT / "weights/toy", 600                               # a time step at which the toy's features are active
SECTIONS = ("step", "memory", "toy", "growth", "space", "paper", "table")
BUDGET = 150                                                    # seconds for the rounds of one batch size
ORIGINAL = {"toy": {"cpu": 8, "cuda": 8}, "full": {"cpu": 1, "cuda": 8}}      # largest of the original's way
LARGEST = {"cpu": {"toy": 64, "full": 8},
           "cuda": {"toy": 512, "full": 64}}                     # batches beyond gain nothing


def tell(text):
    print(text, file=sys.stderr, flush=True)


# --- step ------------------------------------------------------------------------------------------------------------

def batches(name, found, device, quick):
    """1, 5 (on a GPU its usual 8) and the largest power of two that fits, as far as preflight knows."""
    largest, room = LARGEST[device][name], free_bytes(device) or 8e9
    while largest > 5 and sum(predict(found, torch.float32, largest)) > 0.6 * room:
        largest //= 2
    return [1] if quick else sorted({1, 8 if device == "cuda" else 5, largest})


def step_section(name, folder, args):
    """Rows of seconds a step for each batch, way and precision."""
    found, rows = find(folder), []
    flops, maps = ways.count(ways.meta_unet(found), (4, *found.latent))
    models = {dtype: load(folder, args.device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    originals = models if args.device == "cuda" else {torch.float32: models[torch.float32]}
    rate = {str(dtype)[6:]: ways.rates(args.device, dtype) for dtype in models}
    for batch in batches(name, found, args.device, args.quick):
        runs = {}
        for dtype, model in models.items():
            jobs, config = ways.jobs_of(model, batch), ways.endless(model)
            if dtype in originals and batch <= ORIGINAL[name][args.device]:
                runs["original", dtype] = ways.original(model, jobs, config)
                if net := ways.official(model):
                    runs["official", dtype] = ways.original(model, jobs, config, net)
            runs["ours", dtype] = ways.ours(model, jobs, config)
            runs["finish", dtype] = ways.finish(model, jobs, config)
        tell(f"{name}, batch {batch}: " + ", ".join(f"{way} {str(dtype)[6:]}" for way, dtype in runs))
        times = ways.alternate({key: lambda steps=steps: next(steps) for key, steps in runs.items()}, 2
                               if args.quick else 5,
                               args.device, BUDGET)
        for dtype in models:  # the machine's rate is taken again after each: it may have been busy
            now = ways.rates(args.device, dtype)
            rate[str(dtype)[6:]] = {way: max(r, rate[str(dtype)[6:]][way]) for way, r in now.items()}
        rows += [{"batch": batch, "way": way, "dtype": str(dtype)[6:], **ways.summary(t)} for (way, dtype),
                 t in times.items()]
        for steps in runs.values():
            steps.close()
        for p in [p for model in originals.values() for p in (*model.unet.parameters(), *model.sae.parameters())]:
            p.grad = None
    return {"rows": rows, "operations": flops, "operations_of_attention": maps, "rate": rate}


# --- memory ----------------------------------------------------------------------------------------------------------

def peak_memory():
    """Bytes that this process had in memory at most; Linux alone counts from its own start,
    getrusage from its parent's peak.
    """
    if Path("/proc/self/status").exists():
        return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child_memory(args):
    """A process of its own: load, two steps, print its peak."""
    model = load(args.folder, args.device, getattr(torch, args.dtype))
    run = getattr(ways, args.way)(model, ways.jobs_of(model, 1), ways.endless(model))
    for _ in range(2):
        next(run)
    peak = peak_memory()
    print(json.dumps({"process": peak, "device": torch.cuda.max_memory_allocated() if args.device == "cuda" else peak}))


def memory_of(way, dtype, folder, args):
    """Peak bytes of a process that loads and makes two steps."""
    tell(f"memory: {way}, {dtype}")
    command = [sys.executable, __file__, "--child", way, "--dtype", dtype, "--folder", folder, "--device", args.device]
    done = subprocess.run([str(a) for a in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {"way": way, "dtype": dtype, **json.loads(done.stdout)}


def memory_section(folder, args):
    """Rows of peak bytes, loading included."""
    return {"rows": [memory_of(way, dtype, folder, args)
                     for way, dtype in (("original", "float32"), ("ours", "float32"), ("ours", "bfloat16"))]}


# --- space -----------------------------------------------------------------------------------------------------------

def space_section(folder, args):
    """A row for the latent (ours) and one for the pixels: a step's operations and seconds, peak bytes."""
    found, model = find(folder), load(folder, args.device, torch.float32)
    jobs, shape = ways.jobs_of(model, 1), (4, *found.latent)
    latent = ways.count(ways.meta_unet(found), shape)[0]
    operations = {"ours": latent, "pixel": latent + ways.count_encoder(found.sources["vae"].net, shape)}
    runs = {way: getattr(ways, way)(model, jobs, ways.endless(model)) for way in operations}
    times = ways.alternate({way: lambda run=run: next(run) for way, run in runs.items()}, 2 if args.quick else 5,
                           args.device, BUDGET, time.process_time if args.device == "cpu" else time.perf_counter)
    return {"rows": [{"operations": operations[way], **ways.summary(times[way]),
                      **memory_of(way, "float32", folder, args)} for way in operations]}


# --- toy -------------------------------------------------------------------------------------------------------------

def command(args, *flags):
    """Wall seconds of `python featviz.py` with these flags, all of it: imports, loading, ascent, scores, files, sheet.
    """
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "featviz.py"), "--no-finish", "--out", out, "--device", args.device,
                        *map(str, flags)], cwd=ROOT, check=True,
                       capture_output=True)
        return time.perf_counter() - began


def toy_section(args):
    """Seconds from command to pictures; seconds to the activation that the original's 100 steps
    reach, five seeds together.
    """
    rounds = 2 if args.quick else 5
    model = load(TOY, args.device)
    jobs = [Job(feature=model.settings["feature"], timestep=T, seed=s) for s in (1024, 1111, 4359, 3248, 1026)]
    config = configure(model.settings, prior="noise")
    runs = {"original": (ways.original, config), "ours": (ways.ours, config),
            "quick": (ways.ours, dataclasses.replace(config, **QUICK))}
    courses = {way: [] for way in runs}
    for _ in range(rounds):
        for way, (run, its) in runs.items():
            began, course = time.perf_counter(), []
            for a in run(model, jobs, its):
                course.append((time.perf_counter() - began, a.mean().item()))
            courses[way].append(course)
    smooth = lambda course, i: sum(a for _, a in course[max(i - 4, 0):i + 1]) / min(i + 1,
                                                                                    5)   # each step sees another noise
    goal = smooth(courses["original"][0], len(courses["original"][0]) - 1)
    there = lambda course: next((t for i, (t, _) in enumerate(course) if smooth(course, i) >= goal * (1 - 1e-3)), None)
    reach = {way: [there(course) for course in runs] for way, runs in courses.items()}
    reach = {way: None if None in times else ways.summary(times) for way, times in reach.items()}
    whole = {way: ways.summary([course[-1][0] for course in runs]) for way, runs in courses.items()}
    one, five = (ways.summary([command(args, "--timestep", T, "--prior", "noise", "--seed", *seeds)
                               for _ in range(rounds)])
                 for seeds in ((1024,), (1024, 1111, 4359, 3248, 1026)))
    return {"activation_goal": goal, "seconds_to_goal": reach, "seconds_of_100_steps_5_seeds": whole,
            "seconds_from_command_to_picture": one, "seconds_from_command_to_5_pictures": five}


# --- growth ----------------------------------------------------------------------------------------------------------

def over_batch(name, folder, args):
    """[[rows, seconds a step and row]]"""
    model, found, out, room = load(folder, args.device), find(folder), [], free_bytes(args.device) or 8e9
    most = 2 if args.quick else LARGEST[args.device][name]
    for batch in (2 ** k for k in range(10) if 2 ** k <= most):
        if sum(predict(found, model.dtype, batch)) > 0.6 * room:
            break
        steps = ways.ours(model, ways.jobs_of(model, batch), ways.endless(model))
        times = ways.alternate({"ours": lambda steps=steps: next(steps)}, 4, model.device)
        out.append([batch, ways.summary(times["ours"])["seconds"] / batch])
    return out


def over_processes(args, features=64, steps=50):
    """[[processes, seconds]] for `features` features of the toy by `python featviz.py --shard`, imports and loading
    included; a thread each.
    """
    out = []
    for n in (n for n in (1, 2, 4, 8) if n <= os.cpu_count()):
        flags = ["--weights", TOY, "--feature", *range(8 if args.quick else features), "--seed", 1, "--timestep", T,
                 "--prior", "noise", "--num-steps", steps, "--frames", 0, "--no-finish", "--device", args.device]
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            running = [subprocess.Popen([sys.executable, "featviz.py", "--shard", f"{i}/{n}", "--out", folder,
                                         *map(str, flags)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        env=os.environ | {"OMP_NUM_THREADS": "1"}) for i in range(n)]
            if any([process.wait() for process in running]):
                raise RuntimeError(f"featviz.py --shard I/{n} failed; run one by hand to see why")
            out.append([n, time.perf_counter() - began])
    return out


def growth_section(sizes, args):
    out = {name: {"batch": over_batch(name, folder, args)} for name, folder in sizes.items()}
    if "toy" in out:
        out["toy"]["processes"] = over_processes(args)
    return out


# --- all -------------------------------------------------------------------------------------------------------------

def run_section(name, sizes, results, args):
    if name == "step":
        results["step"] = results.get("step", {}) | {size: step_section(size, folder, args) for size,
                                                     folder in sizes.items()}
    elif name == "memory" and "full" in sizes:
        results["memory"] = memory_section(sizes["full"], args)
    elif name == "toy" and "toy" in sizes:
        results["toy"] = toy_section(args)
    elif name == "growth":
        results["growth"] = results.get("growth", {}) | growth_section(sizes, args)
    elif name == "space":
        results["space"] = results.get("space", {}) | {size: space_section(folder, args)
                                                       for size, folder in sizes.items()}
    elif name == "paper":
        results["paper"] = tables.paper(sizes.get("full"))
    elif name == "table":
        print(tables.markdown(results))


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="the toy alone")
    parser.add_argument("--full", action="store_true", help="full size alone")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, batch 1 alone: to see whether it runs")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "featviz_bench_sd14",
                        help="model folder of full size; random weights are written there if there is none")
    parser.add_argument("--out", type=Path, default=ROOT / "bench", help="where the JSON goes")
    parser.add_argument("--child", dest="way", choices=("ours", "original", "pixel"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    os.chdir(ROOT)
    if args.way:
        return child_memory(args)
    path, wanted = args.out / f"speed_{args.device}.json", args.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        sys.exit(f"speed: --only {sorted(unknown)[0]} is no section; there are {', '.join(SECTIONS)}")
    results = json.loads(path.read_text()) if path.exists() else {}
    sizes = {} if args.full and not args.toy else {"toy": TOY}
    if not args.toy or args.full:
        needed = {"step", "memory", "growth", "space"} & set(wanted)
        sizes["full"] = ways.write_full(args.folder) if needed else args.folder
    for i, name in enumerate(wanted):
        tell(f"section {i + 1} of {len(wanted)}: {name}")
        began = time.perf_counter()
        run_section(name, sizes, results, args)
        if name != "table":
            results.setdefault("machine", {})[name] = ways.machine(args.device)
            tell(f"  took {time.perf_counter() - began:.0f} s")
            args.out.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(json.dumps(results, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
