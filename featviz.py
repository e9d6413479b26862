"""See what one feature inside a latent diffusion model responds to: `python featviz.py --feature 12`.

The way from what you type to what you look at, one function a stage: flags -> model -> time steps -> ascent -> results
-> page. The method itself is ascent.py. Whatever cannot be ends in one line on stderr that says what to do, and exit
code 2.
"""
import os
import sys

from command.flags import (
    Parser, add_model, add_out, add_settings, add_shard, check_numbers, check_steps, find_shard, guarded, load_torch)
from command.progress import CaptureProgress, Progress, say
from config import ROBUSTNESS, SEEDS, SETTINGS, Job, check_config, configure, find_preset
from pages.again import FRAMES
from pages.sweep import axis, swept, write_sweeps

EXAMPLES = """examples:
  python featviz.py                                             a toy feature that is worth seeing
  python featviz.py --feature 14 37 --timestep 0 600 --seed 1   features, time steps, seeds: every combination
  python featviz.py --thesis                                    the thesis' five features on one page
  python featviz.py --channel 37 --prior noise --timestep 600   a raw channel, without the SAE, from noise"""


# --- flags ------------------------------------------------------------------------------------------------------------

def number_or(*words):
    """A flag's type: a whole number, or one of these words."""
    def read(text):
        return text if text in words else int(text)
    read.__name__ = "whole number or " + " or ".join(f"'{word}'" for word in words)
    return read


def parse(argv=None):
    """The command line; settings that are not given are left out of the result."""
    parser = Parser(prog="featviz.py", usage="python featviz.py [--feature F ...] [--timestep T ...] ...",
                    description="See what one feature inside a latent diffusion model responds to.", epilog=EXAMPLES)
    group = parser.add_argument_group("what to look at")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--feature", type=number_or("live"), nargs="+", metavar="F",
                      help="features of the sparse autoencoder, or live: all that fire in the capture")
    what.add_argument("--channel", type=int, nargs="+", metavar="C", help="raw channels at the hook point")
    what.add_argument("--thesis", action="store_true", help="the thesis' five features, or the weights' own five, with "
                      "word and example prompt, on one page")
    group.add_argument("--hook-point", metavar="NAME", help="attention, resnet or convolution by its name in "
                       "the UNet (default: the autoencoder's, or up1.1)")
    group.add_argument("--timestep", type=number_or("auto", "active"), nargs="+", metavar="T",
                       help="0..999; auto: 0 and the peaks of the feature's activity; active: 0 and all sampling "
                       "steps at which it is active (default: the weights' own, else auto)")
    group.add_argument("--seed", type=int, nargs="+", metavar="S",
                       help=f"a result each (default: {' '.join(map(str, SEEDS))})")
    group = parser.add_argument_group("how")
    add_model(group)
    group.add_argument("--batch-size", type=int, metavar="B", help="jobs that are computed together, at most")
    add_shard(group)
    group.add_argument("--check", action="store_true", help="say what would run, how long, in what memory; then stop")
    group = parser.add_argument_group("where to, and what beside the result")
    add_out(group)
    group.add_argument("--frames", type=int, default=FRAMES, metavar="N",
                       help=f"pictures of the course to keep, 2 to 50, or 0 (default: {FRAMES})")
    group.add_argument("--again", action="store_true", help="make results anew that are there already")
    group.add_argument("--keep", action="store_true", help="keep results that an older version of this code made")
    group = group.add_mutually_exclusive_group()
    group.add_argument("--trace", type=int, nargs="+", metavar="K", help="no results: open up these steps instead")
    group.add_argument("--sweep", type=axis, nargs="+", default=[], metavar="NAME=V,V",
                       help="every combination of these settings on one sheet, by default of one time step and seed")
    add_settings(parser.add_argument_group(
        "settings of the method", "in brackets what the preset sae has, and raw where it differs; weights may bring "
        "their own; docs/method.md explains each"))
    return parser.parse_args(argv)


# --- model, time steps -> jobs ----------------------------------------------------------------------------------------

def plan(args):
    """Flags -> (model, jobs, configs, batch size); ValueError or WeightsError with one line for what cannot be.

    The configs are one, or with --sweep all combinations.
    """
    from command.missing import lacking
    check_numbers(args)
    (rank, shards), wanted = find_shard(args.shard), args.feature or args.channel or args.thesis
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    level = {} if args.robustness is None else ROBUSTNESS[args.robustness]
    preset, quick = find_preset(args.preset, args.channel)
    settings = lambda own, **more: configure(own, preset, **quick | level | given | more)
    check_config(settings({}, finish_steps=1, gradient_smoothing_kernel_size=1))    # the weights say what these may be
    lacking(args, wanted)                       # for what cannot be had at all; what can be fetched is asked for below
    load_torch()                                # which takes a second; what can be said without it has been said
    from activity.times import with_activity
    from ascent import check_jobs
    from command.device import choose_size, open_model
    from weights.preflight import fit_once
    model = open_model(args, wanted, args.check)
    config = settings(model.settings)
    configs = swept(config, args.sweep, given)
    for one in configs:
        check_config(one, min(model.latent_shape[1:]), len(model.schedule))
    check_steps(args.trace or (), config.num_steps)
    if args.trace and config.space == "pixel":
        raise ValueError("--trace opens up steps of the latent; leave --space pixel out, or --trace")
    model = choose_hook_point(model, args)
    kind, targets = find_targets(model, args)
    when = args.timestep or ([model.settings.get("timestep", 0)] if args.sweep else None)
    seeds = list(dict.fromkeys(args.seed or SEEDS[:1 if args.sweep else None]))
    numbers, steered = [t for t in when or () if isinstance(t, int)], any(one.prior == "steer" for one in configs)
    make = lambda n, t, seed: Job(**{"feature": None, kind: n}, timestep=t, seed=seed)
    check_jobs(model, [make(n, t, seed) for n in targets for t in numbers or [0] for seed in seeds])
    size = choose_size(args, wanted, model)
    if not model.hashes.done() and kind == "feature":   # a check that is due anyway, while the hashes are not there yet
        fit_once(model)
    probing = "check" if args.check else "shard" if shards > 1 else CaptureProgress()
    model, times = with_activity(model, args.out, when, steered, probing, size)
    jobs = [make(n, t, seed) for n in targets[rank::shards] for t in dict.fromkeys([*numbers, *times(kind, n)])
            for seed in seeds]
    return model, jobs, configs, size


def find_targets(model, args):
    """("feature" or "channel", their numbers, each once); of the SAE's features only those that fire for `live`."""
    from activity import thesis
    from activity.times import live
    if args.channel:
        return "channel", list(dict.fromkeys(args.channel))
    if args.thesis:
        return "feature", [row["feature"] for row in thesis.features(model)]
    targets = args.feature or [model.settings.get("feature", 0)]
    if "live" in targets:
        targets = [f for f in targets if f != "live"] + live(model, args.out)
    return "feature", list(dict.fromkeys(targets))


def choose_hook_point(model, args):
    """The model, looked at through --hook-point; ValueError for a feature away from its SAE."""
    from activity.profile import at
    there = at(model, args.hook_point) if args.hook_point else model
    if not args.channel and there.hook_point != model.hook_point:
        raise ValueError(f"--hook-point {args.hook_point}: the features of {model.folder} are at {model.hook_point}; "
                         "leave the flag out, or look at raw channels with --channel")
    if not args.channel:
        there.sae                               # says so where there is none
    return there


# --- ascent, finish -> results ----------------------------------------------------------------------------------------

def run(args):
    """All jobs that are not finished yet, each written as soon as it is done; the exit code."""
    model, jobs, configs, size = plan(args)
    from ascent import kept_steps
    from command.told import announce, check
    from pages import files
    from pages.thesis import write_thesis
    if not jobs:
        print("there are fewer features than processes: nothing to do for this one", file=sys.stderr)
        return 0
    if args.check:
        return check(model, jobs * len(configs), configs[0], size)
    usual = configure(model.settings, "raw" if args.channel else "sae")
    recipes = {(job, one): recipe for one in configs for job, recipe in files.recipes(model, jobs, one, usual).items()}
    files.prepare(args.out)
    if args.trace:
        return run_trace(model, {job: recipes[job, configs[0]] for job in jobs}, configs[0], size, args)
    steps = {one: kept_steps(one.num_steps, args.frames) for one in configs}
    why = {(job, one): "again" if args.again else files.lacking(args.out, recipe, steps[one], args.keep)
           for (job, one), recipe in recipes.items()}
    announce(model, why, configs[0])
    table = draw_examples(model, args.out, recipes) if args.thesis else None
    failed = [path for one in configs for path, result in compute(model, one, why, recipes, size, args)
              if result.verdict.startswith("non-finite")]
    show(model, {files.path_of(args.out, recipe).parent.parent: (job.kind, job.target)
                 for (job, _), recipe in recipes.items()})
    for path in write_sweeps(args.out, list(recipes.values()), args.sweep):
        say(f"look at {path}")
    if table:
        say(f"look at {write_thesis(*table)}")
    if failed:
        print(f"featviz: {len(failed)} of {len(recipes)} ascents met NaN or infinite values, first {failed[0]}; its "
              "latent is the last finite one; try a smaller --learning-rate or --steer-scale", file=sys.stderr)
    return 2 if failed else 0


def compute(model, config, why, recipes, size, args):
    """The results of one config that are still to be made: (path, Result), each written and told when it is done."""
    from finish import course_length, stream
    from pages import files
    todo = [job for (job, one), reason in why.items() if one == config and reason]
    progress = Progress(len(todo), size, course_length(config))
    for result in stream(model, todo, config, size, progress, args.frames) if todo else ():
        path, last = files.save(args.out, result, recipes[result.job, config]), result.finished or result
        progress.finished(result)
        say(f"{path}: {last.verdict}, activation {result.scores['activation_start']:.4f} -> {result.activation:.4f}"
            + (f", finished {last.activation:.4f}" if result.finished else "") + f", rank {last.scores['rank']}")
        yield path, result


# --- results -> page -------------------------------------------------------------------------------------------------

def show(model, targets):
    """What is there to look at in each feature's folder: its activity in the capture, what the weights' own eyes see
    in its pictures, sheet and page.
    targets: {folder: (kind, number)}
    """
    from activity.profile import analysis
    from pages import files
    from pages.feature import write_page
    from pages.measure import measure_own
    from pages.sheet import write_sheet
    names = {folder.name for folder in targets}
    for folder, (kind, number) in targets.items() if model.captured else ():
        files.save_activity(folder, analysis(model, kind, number, files.times_in(folder)))
    measure_own(model.folder, model.device, targets)
    for folder in sorted(targets):
        sheet = write_sheet(folder)
        say(f"look at {write_page(folder, names)}, or print {sheet}")
    if len(targets) > 1:
        print(f"all of them on one page: python -m pages --atlas {folder.parent}", file=sys.stderr)


def draw_examples(model, out, recipes):
    """What --thesis shows beside the ascents, drawn before them: (the page's folder, the features in their order)."""
    from activity import thesis
    from pages.files import path_of
    folder, rows = out / model.name / "thesis", thesis.features(model)
    if warning := thesis.elsewhere(model):
        print(f"warning: {warning}", file=sys.stderr)
    for row in rows:
        paths = [path_of(out, recipe) for (job, _), recipe in recipes.items() if job.target == row["feature"]]
        if paths:                               # else another process's
            say(thesis.sample(model, row, folder, [os.path.relpath(path, folder) for path in paths]))
    return folder, [row["feature"] for row in rows]


def run_trace(model, recipes, config, size, args):
    """What --trace makes: a page and its files for each job."""
    from finish import course_length
    from pages.trace import trace
    progress = Progress(len(recipes), size, course_length(config) if config.finish else max(args.trace) + 1)
    for path in trace(model, recipes, config, args.trace, args.out, size, args.weights, progress):
        progress.finished(path)
        say(f"look at {path}")
    return 0


def main(argv=None):
    return guarded("featviz", run, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
