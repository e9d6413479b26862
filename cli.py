"""The command line of featviz.py: flags -> jobs and settings -> results on disk.

Every field of `featviz.Config` is a flag of the same name. Whatever cannot be ends in one line on stderr that says what to do, and
exit code 2.
"""
import argparse
import copy
import dataclasses
import os
import shutil
import sys
import time
from pathlib import Path

import torch

import results
from activity import TABLES, analysis, attach, find, fits, timesteps
from again import FRAMES
from capture import capture, probe_settings
from capture import configure as capture_settings
from checkpoint import WeightsError, load
from featviz import PRESETS, SEEDS, Config, Job, ascend, check_jobs, configure, default_batch_size, kept_steps, stream
from page import write_page
from preflight import check_fit, check_memory, fit, verdict
from regularizers import REFERENCE_WIDTH
from report import write_sheet
from tracing import check_steps, trace

try:
    import resource                             # peak memory; not on Windows
except ImportError:
    resource = None

ROOT = Path(__file__).parent
SD_FOLDERS = ("weights/style50", "weights/sd14", "weights/sd15")
CHOICES = {"prior": ("steer", "noise"), "prior_sampler": ("pndm", "ddim"), "steer_steps": ("active", "all")}
FULL = "python activity.py capture --weights {}"
LARGEST = 1e6                                   # of a setting; the optimiser's own arithmetic overflows far above it


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message):
        script = self.prog.split()[0]
        self.exit(2, f"{script.removesuffix('.py')}: {message} (python {self.prog} --help lists all flags)\n")


def timestep(text):
    return text if text == "auto" else int(text)


def feature(text):
    return text if text == "live" else int(text)


def shard(text):
    """"1/4" -> (1, 4): the second of four."""
    rank, shards = (int(part) for part in text.split("/"))
    if not 0 <= rank < shards:
        raise ValueError
    return rank, shards


def find_shard(args):
    """Which share of the work is this process's: --shard, else torchrun's, else a SLURM array's; (0, 1) when alone."""
    env = os.environ
    if args.shard:
        return args.shard
    for rank, shards, first in (("RANK", "WORLD_SIZE", ""), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")):
        if rank in env and shards in env:
            try:
                return shard(f"{int(env[rank]) - int(env.get(first, 0))}/{env[shards]}")
            except ValueError as e:
                raise ValueError(f"{rank} is {env[rank]} and {shards} {env[shards]}: expected consecutive numbers; give --shard I/N") from e
    return 0, 1


def add_shard(parser):
    parser.add_argument("--shard", type=shard, metavar="I/N", help="do the I-th of N shares, I from 0 (default: torchrun's or SLURM's)")


def add_common(parser):
    """The flags that featviz.py and activity.py share."""
    parser.add_argument("--weights", type=Path, help="model folder or single .safetensors file (default: Stable Diffusion's folder where it "
                        "is, else weights/toy)")
    parser.add_argument("--ema", action="store_true", help="of a single file with two sets of weights, take the moving average")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the networks (default: float32, bfloat16 on cuda)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results")


def parse(argv):
    parser = Parser(prog="featviz.py", description="See what one feature inside a latent diffusion model responds to.",
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--feature", type=feature, nargs="+", metavar="F", help="features of the sparse autoencoder, or live: all that fire in "
                      "the capture")
    what.add_argument("--channel", type=int, nargs="+", metavar="C", help="raw channels at the hook point, without the SAE")
    parser.add_argument("--hook-point", metavar="NAME", help="transformer block of --channel (default: the SAE's, or up1.1)")
    parser.add_argument("--timestep", type=timestep, nargs="+", metavar="T", help="time steps 0..999, or auto: 0 and the peaks of the "
                        "feature's activity (default: auto where there is a capture, else the weights' own, else auto)")
    parser.add_argument("--seed", type=int, nargs="+", default=list(SEEDS), help="one result each")
    parser.add_argument("--preset", choices=PRESETS, help="all settings below at once (default: sae, or raw with --channel)")
    parser.add_argument("--batch-size", type=int, metavar="B", help="jobs that are computed together")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N", help="pictures of the course to keep with each result, 2 to 50, or 0; "
                        "changes no result")
    add_common(parser)
    add_shard(parser)
    parser.add_argument("--trace", type=int, nargs="+", metavar="K", help="make no results: open up these steps of the ascent, 0-based, every "
                        "stage as picture, tensors and page")
    parser.add_argument("--check", action="store_true", help="say what would run, where, how long and in how much memory; then stop")
    settings = parser.add_argument_group("settings of the method (defaults: the preset's)")
    for field in dataclasses.fields(Config):
        kind = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type, "metavar": "X"}
        if field.name in CHOICES:
            kind = {"choices": CHOICES[field.name]}
        settings.add_argument("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS, help=field.metadata["help"], **kind)
    return parser.parse_args(argv)


def default_weights(wanted):
    """The first folder of Stable Diffusion that is there, if a feature or channel is wanted; otherwise the toy."""
    found = [ROOT / f for f in SD_FOLDERS if (ROOT / f / "unet").exists()]
    return found[0] if found and wanted else ROOT / "weights/toy"


def open_model(args, wanted):
    """The model of --weights on --device in --dtype; under torchrun each process takes its own GPU."""
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: no CUDA device is visible to torch {torch.__version__}; use --device cpu")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if args.device == "cuda" and "LOCAL_RANK" in os.environ else args.device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ValueError(f"--device {args.device}: {str(e).splitlines()[0]}; use --device cpu") from e
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    path = args.weights or default_weights(wanted)
    if getattr(args, "check", False):
        check_memory(path, device, dtype, args.ema, getattr(args, "batch_size", None))
    model = load(path, device, dtype, args.ema, not getattr(args, "check", False))      # --check looks at every number
    if model.note:
        print(f"{path}: takes {model.note}", file=sys.stderr)
    return model


def plan(args):
    """Flags -> (model, jobs, config, batch size); ValueError or WeightsError with one line for what cannot be."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.frames != 0 and not 2 <= args.frames <= 50:
        raise ValueError(f"--frames must be 0 or between 2 and 50, got {args.frames}")
    (rank, shards), model = find_shard(args), open_model(args, args.feature or args.channel)
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Config) if hasattr(args, f.name)}
    config = configure(model, args.preset or ("raw" if args.channel else "sae"), **given)
    check_config(config, model)
    check_steps(args.trace or (), config)
    home, model = model.hook_point, choose_hook_point(model, args, config)
    targets = [("channel", c) for c in args.channel or ()] or [("feature", f) for f in features(model, args)]
    numbers = [t for t in args.timestep or () if t != "auto"]
    size = args.batch_size or default_batch_size(model)
    try:
        check_jobs(model, [Job(**{kind: n}, timestep=t, seed=seed) for kind, n in targets for t in numbers or [0] for seed in args.seed])
    except ValueError as e:
        hint = "" if args.weights else "; Stable Diffusion's 20480 features need its weights: see weights/README.md, then --weights"
        raise ValueError(f"{e}{hint}") from e
    model, times = with_activity(model, args, config, size, home)
    jobs = [Job(**{kind: n}, timestep=t, seed=seed) for kind, n in targets[rank::shards]
            for t in dict.fromkeys([*numbers, *times(kind, n)]) for seed in args.seed]
    return model, jobs, config, size


def features(model, args):
    """The numbers of --feature, `live` spelled out: every feature whose mean activation is above 0 in some image at some time step."""
    if not args.feature or "live" not in args.feature:
        return args.feature or [model.settings.get("feature", 0)]
    folder = find(model, args.out)
    if not folder:
        raise ValueError(f"--feature live: {model.folder} has no capture that says which fire; run {FULL.format(model.folder)} first")
    fires = (attach(model, folder).activity["max_feature"] > 0).any(dim=0)                      # (F,)
    return list(dict.fromkeys([f for f in args.feature if f != "live"] + fires.nonzero().flatten().tolist()))


def with_activity(model, args, config, size, home):
    """(the model with the tables of its capture, a function (kind, target) -> time steps beside those given as numbers).

    Where the tables are needed and there is no capture, a probe is made. They are not needed where --timestep or the weights' own
    featviz.json gives the time steps and the strength of the prior is known or not asked for.
    """
    own = lambda kind, n: () if args.timestep else (model.settings.get("timestep", 0),)
    if model.hook_point != home:                                # nothing was captured there
        return model, own
    folder = find(model, args.out)
    auto = "auto" in args.timestep if args.timestep else folder is not None or "timestep" not in model.settings
    needed = auto or config.prior == "steer" and TABLES not in model.parts
    if needed and not folder:
        if args.check:
            print(f"{model.folder} has no capture: a probe would come first; time steps are counted as 4 a feature")
            return model, (lambda kind, n: (0, 250, 500, 750)) if auto else own
        if find_shard(args)[1] > 1:
            raise ValueError(f"{model.folder} has no capture, which several processes need: run {FULL.format(model.folder)} first")
        folder = probe(model, args.out, size)
    if not folder:
        return model, own
    captured = attach(model, folder)
    return captured, (lambda kind, n: timesteps(captured.activity, kind, n)) if auto else own


def probe(model, out, size):
    """The folder of a small capture, made to stand in for a missing one; says so, what it costs, and what the real one is."""
    folder = Path(out) / model.name / "probe"
    if fits(model, folder):
        print(f"{model.folder} has no capture: the probe in {folder} stands in for it; for the full one run {FULL.format(model.folder)}",
              file=sys.stderr)
        return folder
    settings = probe_settings(capture_settings(model, batch_size=size))
    print(f"{model.folder} has no capture: a probe of {settings.images} prompts in {settings.steps} steps stands in for it; for the full "
          f"one run {FULL.format(model.folder)}", file=sys.stderr)
    if (folder / "capture.json").exists():                      # of other weights
        shutil.rmtree(folder)
    began = time.time()
    capture(model, settings, folder, on_batch=CaptureProgress())
    print(f"the probe took {time.time() - began:.0f} s and is kept in {folder}", file=sys.stderr)
    return folder


class CaptureProgress:
    """Images done, their rate and the time left, on stderr."""

    def __init__(self):
        self.began = None

    def __call__(self, done, total):
        if self.began is None:
            self.began, self.first = time.time(), done
            if done:
                print(f"goes on after image {done} of {total}", file=sys.stderr)
            return
        rate = (done - self.first) / max(time.time() - self.began, 1e-9)
        print(f"\rimage {done}/{total}, {rate:.2f} images/s, {(total - done) / rate:.0f} s left   ", end="\n" if done == total else "",
              file=sys.stderr, flush=True)


def choose_hook_point(model, args, config):
    """The model, looked at through --hook-point; ValueError where the SAE or the activity was made at another."""
    if args.hook_point:
        wanted = model.unet.hook_name(args.hook_point)
        if not args.channel and wanted != model.hook_point:
            raise ValueError(f"--hook-point {args.hook_point}: the features of {model.folder} are at {model.hook_point}; leave the flag out, "
                             "or look at raw channels with --channel")
        if args.channel and wanted != model.hook_point and config.prior == "steer":
            raise ValueError(f"--hook-point {args.hook_point}: the strength of a steered prior was measured at {model.hook_point} only; "
                             "add --prior noise")
        if wanted != model.hook_point and "auto" in (args.timestep or ()):
            raise ValueError(f"--hook-point {args.hook_point}: activity was captured at {model.hook_point} only; give --timestep numbers")
        model = copy.copy(model)
        model.hook_point = wanted
    if not args.channel:
        model.sae                               # says so where there is none
    return model


def check_config(config, model):
    """ValueError for a setting of the wrong kind or outside its range."""
    for field in dataclasses.fields(Config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        whole = type(value) is int and field.type is float
        if type(value) is not field.type and not whole or field.type is float and not abs(value) <= LARGEST:
            kind = {float: f"a number of size {LARGEST:g} at most", int: "a whole number", bool: "true or false",
                    str: "a name"}[field.type]
            raise ValueError(f"{flag} must be {kind}, got {value!r}")
        if value not in CHOICES.get(field.name, (value,)):
            raise ValueError(f"{flag} must be one of {', '.join(CHOICES[field.name])}, got {value!r}")
    size, least = config.gradient_smoothing_kernel_size, min(model.latent_shape[1:])
    for bad, text in (
            (config.num_steps < 1, "--num-steps must be at least 1"),
            (not 1 <= config.prior_steps < len(model.schedule), f"--prior-steps must be between 1 and {len(model.schedule) - 1}"),
            (config.learning_rate <= 0, "--learning-rate must be above 0"),
            (not 0 <= config.beta1 < 1, "--beta1 must be between 0 and 1"),
            (not 0 <= config.beta2 < 1, "--beta2 must be between 0 and 1"),
            (config.epsilon <= 0, "--epsilon must be above 0"),
            (config.weight_decay < 0, "--weight-decay must be at least 0"),
            (size % 2 == 0 or not 1 <= size < 2 * least, f"--gradient-smoothing-kernel-size must be odd and below {2 * least}"),
            (not 0 <= config.jitter_max <= REFERENCE_WIDTH, f"--jitter-max must be between 0 and {REFERENCE_WIDTH}"),
            (config.scale_max <= 0, "--scale-max must be above 0")):
        if bad:
            raise ValueError(text)


class Progress:
    """Steps done and time left, on stderr: one line a batch, rewritten at each of its steps."""

    def __init__(self, total, steps):
        self.total, self.steps, self.done, self.began = total, steps, 0, None

    def __call__(self, step):
        self.began = self.began or time.time()
        self.done += 1
        left = (time.time() - self.began) / max(self.done - 1, 1) * (self.total - self.done)
        end = "\n" if step.index + 1 == self.steps else ""
        print(f"\rstep {self.done}/{self.total}, mean activation {step.activation.mean():.4f}, {left:.0f} s left   ", end=end,
              file=sys.stderr, flush=True)


def peak_memory(model):
    """Bytes: of the GPU, or of the process; 0 where the system does not tell."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024         # the same field counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale if resource else 0


def check(model, jobs, config, size):
    """What --check prints: measured on one gradient of one batch, nothing written."""
    batches = -(-len(jobs) // size)
    began = time.time()
    next(ascend(model, (jobs * size)[:size], dataclasses.replace(config, prior="noise")))
    seconds = (time.time() - began) * batches * (config.num_steps + (config.prior == "steer") * config.prior_steps)
    print(f"{len(jobs)} results at {model.hook_point} of {model.folder} on {model.device} in {model.dtype}, {size} at a time: about "
          f"{seconds:.0f} s, {peak_memory(model) / 2**30:.1f} GiB; {len(model.fingerprints)} files read, all names, shapes and values are sound")
    if jobs[0].kind == "feature":
        print(check_fit(model))


def run_trace(model, jobs, config, size, args):
    """What --trace makes: a page and its files for each job."""
    results.prepare(args.out)
    length = max(args.trace) + 1
    progress = Progress(-(-len(jobs) // size) * length, length)
    for path in trace(model, jobs, config, args.trace, args.out, size, args.weights, progress):
        print(f"look at {path}")
    return 0


def run(args):
    """All jobs that are not finished yet, each written as soon as it is done; the exit code."""
    model, jobs, config, size = plan(args)
    if not jobs:
        print("there are fewer features than processes: nothing to do for this one", file=sys.stderr)
        return 0
    if args.check:
        check(model, jobs, config, size)
        return 0
    if args.trace:
        return run_trace(model, jobs, config, size, args)
    recipes = {job: results.recipe(model, job, config) for job in jobs}
    steps = kept_steps(config.num_steps, args.frames)
    todo = [job for job in jobs if not results.finished(args.out, recipes[job], steps)]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} results are there already, made with the same settings", file=sys.stderr)
    results.prepare(args.out)
    failed = []
    if todo:
        print(f"{len(todo)} results, {config.num_steps} steps, {model.folder} on {model.device}"
              + (f", after {config.prior_steps} sampling steps of the prior" if config.prior == "steer" else ""), file=sys.stderr)
        if jobs[0].kind == "feature" and (warning := verdict(model, *fit(model))):
            print(f"warning: {warning}", file=sys.stderr)
    progress = Progress(-(-len(todo) // size) * config.num_steps, config.num_steps)
    for result in stream(model, todo, config, size, progress, args.frames) if todo else ():
        path = results.save(args.out, result, recipes[result.job])
        print(f"{path}: {result.verdict}, activation {result.scores['activation_start']:.4f} -> {result.activation:.4f}, "
              f"rank {result.scores['rank']}")
        if result.verdict.startswith("non-finite"):
            failed.append(path)
    report(model, {results.path_of(args.out, recipes[job]).parent.parent: (job.kind, job.target) for job in jobs})
    if failed:
        print(f"featviz: {len(failed)} of {len(jobs)} ascents met NaN or infinite values, first {failed[0]}; its latent is the last "
              "finite one; try a smaller --learning-rate or --steer-scale", file=sys.stderr)
    return 2 if failed else 0


def report(model, targets):
    """What is there to look at in each feature's folder: its activity in the capture, sheet and page. targets: {folder: (kind, number)}"""
    names = {folder.name for folder in targets}
    for folder, (kind, number) in sorted(targets.items()):
        if model.captured:
            results.save_activity(folder, analysis(model, model.captured, kind, number, results.times_in(folder)))
        sheet = write_sheet(folder)
        print(f"look at {write_page(folder, names)}, or print {sheet}")
    if len(targets) > 1:
        print(f"all of them on one page: python report.py --atlas {folder.parent}", file=sys.stderr)


def guarded(name, work, *args):
    """The exit code of work(*args): what cannot be ends in one line on stderr and 2."""
    try:
        return work(*args)
    except (WeightsError, ValueError, OSError, torch.OutOfMemoryError) as e:
        hint = "; make room or give another --out, finished results stay" if isinstance(e, OSError) else ""
        print(f"{name}: " + " ".join(str(e).split()) + hint, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; finished results stay, the same command goes on from there", file=sys.stderr)
        return 130


def main(argv=None):
    return guarded("featviz", run, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
