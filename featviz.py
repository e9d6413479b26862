"""See what one feature inside a latent diffusion model responds to: `python featviz.py --feature 12`.

The way from what you type to what you look at, one function a stage: flags -> model -> time steps -> ascent -> results -> page.
The method itself is ascent.py. Whatever cannot be ends in one line on stderr that says what to do, and exit code 2.
"""
import argparse
import dataclasses
import sys
import time

from command.flags import Parser, add_model, add_out, add_shard, find_shard, guarded
from config import PRESETS, SEEDS, SETTINGS, Job, check_config, configure, flag
from pages.again import FRAMES

EXAMPLES = """examples:
  python featviz.py                                             a toy feature that is worth seeing
  python featviz.py --feature 14 37 --timestep 0 600 --seed 1   features, time steps, seeds: every combination
  python featviz.py --channel 37 --prior noise --timestep 600   a raw channel, without the SAE, from noise"""


# --- flags -----------------------------------------------------------------------------------------------------------------

def number_or(*words):
    """A flag's type: a whole number, or one of these words."""
    def read(text):
        return text if text in words else int(text)
    read.__name__ = "whole number or " + " or ".join(f"'{word}'" for word in words)
    return read


def parse(argv=None):
    parser = Parser(prog="featviz.py", usage="python featviz.py [--feature F ...] [--timestep T ...] [--seed S ...] [more below]",
                    description="See what one feature inside a latent diffusion model responds to.", epilog=EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("what to look at")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--feature", type=number_or("live"), nargs="+", metavar="F", help="features of the sparse autoencoder, or live: all "
                      "that fire in the capture")
    what.add_argument("--channel", type=int, nargs="+", metavar="C", help="raw channels at the hook point, without the SAE")
    group.add_argument("--hook-point", metavar="NAME", help="where in the UNet, for --channel (default: where the SAE is, or up1.1)")
    group.add_argument("--timestep", type=number_or("auto", "active"), nargs="+", metavar="T", help="0..999; auto: 0 and the peaks of the "
                       "feature's activity; active: 0 and all sampling steps at which it is active (default: auto where there is a capture, "
                       "else the weights' own)")
    group.add_argument("--seed", type=int, nargs="+", default=list(SEEDS), metavar="S", help=f"a result each (default: {' '.join(map(str, SEEDS))})")
    group = parser.add_argument_group("how")
    add_model(group)
    group.add_argument("--batch-size", type=int, metavar="B", help="jobs that are computed together")
    add_shard(group)
    group.add_argument("--check", action="store_true", help="say what would run, where, how long and in how much memory; then stop")
    group = parser.add_argument_group("where to, and what beside the result")
    add_out(group)
    group.add_argument("--frames", type=int, default=FRAMES, metavar="N", help=f"pictures of the course to keep, 2 to 50, or 0 (default: {FRAMES})")
    group.add_argument("--trace", type=int, nargs="+", metavar="K", help="no results: open up these steps, every stage as picture and tensors")
    group = parser.add_argument_group("settings of the method", "defaults are the preset's; docs/method.md explains each")
    group.add_argument("--preset", choices=PRESETS, help="all of them at once (default: sae, or raw with --channel)")
    for name, field in SETTINGS.items():
        kind = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type, "metavar": "X"}
        if field.metadata["choices"]:
            kind = {"choices": field.metadata["choices"]}
        group.add_argument(flag(name), default=argparse.SUPPRESS, help=field.metadata["help"], **kind)
    return parser.parse_args(argv)


# --- model, time steps -> jobs ---------------------------------------------------------------------------------------------

def plan(args):
    """Flags -> (model, jobs, config, batch size); ValueError or WeightsError with one line for what cannot be."""
    from activity.times import live, with_activity
    from ascent import check_jobs, default_batch_size
    from command.device import open_model
    from command.progress import CaptureProgress
    check_numbers(args)
    (rank, shards), model = find_shard(args.shard), open_model(args, args.feature or args.channel, args.check, args.batch_size)
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    config = configure(model.settings, args.preset or ("raw" if args.channel else "sae"), **given)
    check_config(config, min(model.latent_shape[1:]), len(model.schedule))
    check_steps(args.trace or (), config)
    model = choose_hook_point(model, args)
    kind, targets = ("channel", args.channel) if args.channel else ("feature", args.feature or [model.settings.get("feature", 0)])
    if "live" in targets:
        targets = list(dict.fromkeys([f for f in targets if f != "live"] + live(model, args.out)))
    numbers = [t for t in args.timestep or () if isinstance(t, int)]
    size = args.batch_size or default_batch_size(model.device, model.latent_shape)
    try:
        check_jobs(model, [Job(**{"feature": None, kind: n}, timestep=t, seed=seed) for n in targets for t in numbers or [0] for seed in args.seed])
    except ValueError as e:
        hint = "" if args.weights else "; Stable Diffusion's 20480 features need its weights: see weights/README.md, then --weights"
        raise ValueError(f"{e}{hint}") from e
    probing = "check" if args.check else "shard" if shards > 1 else CaptureProgress()
    model, times = with_activity(model, args.out, args.timestep, config.prior == "steer", probing, size)
    jobs = [Job(**{"feature": None, kind: n}, timestep=t, seed=seed) for n in targets[rank::shards]
            for t in dict.fromkeys([*numbers, *times(kind, n)]) for seed in args.seed]
    return model, jobs, config, size


def check_numbers(args):
    """ValueError for a flag that is out of range whatever the model."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.frames != 0 and not 2 <= args.frames <= 50:
        raise ValueError(f"--frames must be 0 or between 2 and 50, got {args.frames}")


def check_steps(steps, config):
    """ValueError for a step of --trace that the ascent does not have."""
    for k in steps:
        if not 0 <= k < config.num_steps:
            raise ValueError(f"--trace {k} is out of range: the ascent has {config.num_steps} steps, 0..{config.num_steps - 1} "
                             "(--num-steps sets how many)")


def choose_hook_point(model, args):
    """The model, looked at through --hook-point; ValueError for a feature away from its SAE."""
    from activity.profile import at
    there = at(model, args.hook_point) if args.hook_point else model
    if not args.channel and there.hook_point != model.hook_point:
        raise ValueError(f"--hook-point {args.hook_point}: the features of {model.folder} are at {model.hook_point}; leave the flag out, or look "
                         "at raw channels with --channel")
    if not args.channel:
        there.sae                               # says so where there is none
    return there


# --- ascent -> results -----------------------------------------------------------------------------------------------------

def run(args):
    """All jobs that are not finished yet, each written as soon as it is done; the exit code."""
    from ascent import kept_steps, stream
    from command.progress import Progress
    from pages import files
    model, jobs, config, size = plan(args)
    if not jobs:
        print("there are fewer features than processes: nothing to do for this one", file=sys.stderr)
        return 0
    if args.check:
        return check(model, jobs, config, size)
    if args.trace:
        return run_trace(model, jobs, config, size, args)
    recipes = {job: files.recipe(model, job, config) for job in jobs}
    steps = kept_steps(config.num_steps, args.frames)
    todo = [job for job in jobs if not files.finished(args.out, recipes[job], steps)]
    files.prepare(args.out)
    announce(model, jobs, todo, config)
    progress, failed = Progress(-(-len(todo) // size) * config.num_steps, config.num_steps), []
    for result in stream(model, todo, config, size, progress, args.frames) if todo else ():
        path = files.save(args.out, result, recipes[result.job])
        print(f"{path}: {result.verdict}, activation {result.scores['activation_start']:.4f} -> {result.activation:.4f}, "
              f"rank {result.scores['rank']}")
        if result.verdict.startswith("non-finite"):
            failed.append(path)
    show(model, {files.path_of(args.out, recipes[job]).parent.parent: (job.kind, job.target) for job in jobs})
    if failed:
        print(f"featviz: {len(failed)} of {len(jobs)} ascents met NaN or infinite values, first {failed[0]}; its latent is the last "
              "finite one; try a smaller --learning-rate or --steer-scale", file=sys.stderr)
    return 2 if failed else 0


def announce(model, jobs, todo, config):
    """What is there already, what comes, and whether UNet and SAE belong together, on stderr."""
    from weights.preflight import fit, verdict
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} results are there already, made with the same settings", file=sys.stderr)
    if todo:
        print(f"{len(todo)} results, {config.num_steps} steps, {model.folder} on {model.device}"
              + (f", after {config.prior_steps} sampling steps of the prior" if config.prior == "steer" else ""), file=sys.stderr)
        if jobs[0].kind == "feature" and (warning := verdict(model.sae.k, *fit(model))):
            print(f"warning: {warning}", file=sys.stderr)


# --- results -> page -------------------------------------------------------------------------------------------------------

def show(model, targets):
    """What is there to look at in each feature's folder: its activity in the capture, sheet and page. targets: {folder: (kind, number)}"""
    from activity.profile import analysis
    from pages import files
    from pages.feature import write_page
    from pages.sheet import write_sheet
    names = {folder.name for folder in targets}
    for folder, (kind, number) in sorted(targets.items()):
        if model.captured:
            files.save_activity(folder, analysis(model, kind, number, files.times_in(folder)))
        sheet = write_sheet(folder)
        print(f"look at {write_page(folder, names)}, or print {sheet}")
    if len(targets) > 1:
        print(f"all of them on one page: python -m pages --atlas {folder.parent}", file=sys.stderr)


def run_trace(model, jobs, config, size, args):
    """What --trace makes: a page and its files for each job."""
    from command.progress import Progress
    from pages import files
    from pages.trace import trace
    files.prepare(args.out)
    length = max(args.trace) + 1
    progress = Progress(-(-len(jobs) // size) * length, length)
    for path in trace(model, jobs, config, args.trace, args.out, size, args.weights, progress):
        print(f"look at {path}")
    return 0


def check(model, jobs, config, size):
    """What --check prints: measured on one gradient of one batch, nothing written."""
    from ascent import ascend
    from command.device import peak_memory
    from weights.preflight import check_fit
    batches, began = -(-len(jobs) // size), time.time()
    next(ascend(model, (jobs * size)[:size], dataclasses.replace(config, prior="noise")))
    seconds = (time.time() - began) * batches * (config.num_steps + (config.prior == "steer") * config.prior_steps)
    print(f"{len(jobs)} results at {model.hook_point} of {model.folder} on {model.device} in {model.dtype}, {size} at a time: about "
          f"{seconds:.0f} s, {peak_memory(model.device) / 2**30:.1f} GiB; {len(model.fingerprints)} files read, all names, shapes and values "
          "are sound")
    if jobs[0].kind == "feature":
        print(check_fit(model))
    return 0


def main(argv=None):
    return guarded("featviz", run, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
