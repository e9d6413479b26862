"""See what one feature inside a latent diffusion model responds to: `python featviz.py --feature 12`.

The way from what you type to what you look at, one function a stage: flags -> model -> jobs -> results -> pages. The
method itself is ascent.py, the course of one batch visualize.py. Whatever cannot be ends in one line on stderr that
says what to do, and exit code 2. In a notebook:

    import featviz
    model = featviz.load("weights/toy")
    featviz.visualize(model, features=[4])[0]
"""
import dataclasses
import itertools
import sys
from pathlib import Path

from command.flags import (
    Parser, add_model, add_out, add_settings, add_shard, find_shard, folder, forgiving_console, guarded, nearest,
    numbers, numbers_or_words)
from command.progress import CaptureProgress, Progress, say, warn
from config import PRESETS, QUICK, SEEDS, SETTINGS, check_config, check_setting, configure

PROJECT = Path(__file__).resolve().parent
TOY = PROJECT / "weights/toy"
PUBLISHED = ("style50", "saemnesia", "sd14", "sd15")            # folders under weights/ that are looked for, in order
SD_FEATURES, SD_CHANNELS = 20_480, 1_280                        # of SAeUron's SAEs at up1.1, arXiv 2501.18052
FRAMES = 8                                                      # pictures of the course that a run keeps
EXAMPLES = """examples:
  python featviz.py                                             a toy feature that is worth seeing
  python featviz.py --feature 14 37 --timestep 0 600 --seed 1   features, time steps, seeds: every combination
  python featviz.py --feature 0-199 --seed 1024                 a range of features
  python featviz.py --thesis                                    the thesis' five features on one page
  python featviz.py --channel 37 --prior noise --timestep 600   a raw channel, without the SAE, from noise"""


# --- for notebooks ----------------------------------------------------------------------------------------------------

def load(path=None, device=None, dtype=None, hook_point=None, out="out"):
    """Load a folder of weights, by default the toy, with its capture where there is one; see weights.load.load.

    out  where a capture of your own was written
    """
    from activity.profile import find_capture
    from weights.load import load
    model = load(path, device, dtype, hook_point)
    model.capture = find_capture(model, out)
    return model


def visualize(model, **what):
    """Visualise features, channels or directions of a model: [Result]; see visualize.visualize."""
    from visualize import visualize
    return visualize(model, **what)


# --- flags ------------------------------------------------------------------------------------------------------------

def moment(text):
    """Read a time step, or auto, or active."""
    return text if text in ("auto", "active") else int(text)


def axis(text):
    """Read a setting and its values: "range_weight=0,0.5" -> ("range_weight", [0.0, 0.5])."""
    given, _, values = text.partition("=")
    name = given.removeprefix("--").replace("-", "_")
    if name not in SETTINGS:
        raise ValueError(f"--sweep {given}: is no setting; expected NAME=VALUE,VALUE, nearest: "
                         f"{nearest(name, SETTINGS)}")
    kind, switch = SETTINGS[name].type, {"on": True, "off": False}
    try:
        read = [switch[v] if kind is bool else v if kind is str else (float(v) if kind is float else int(v))
                for v in values.split(",")]
    except (KeyError, ValueError):
        wanted = "on or off" if kind is bool else "numbers"
        raise ValueError(f"--sweep {name} takes {wanted}, separated by commas, got {values!r}") from None
    for value in read:
        check_setting(name, SETTINGS[name], value)
    return name, list(dict.fromkeys(read))


def parse(argv=None):
    """Parse the command line; settings that are not given are left out of the result."""
    parser = Parser(prog="featviz.py", usage="python featviz.py [--feature F ...] [--timestep T ...] ...",
                    description="See what one feature inside a latent diffusion model responds to.", epilog=EXAMPLES)
    group = parser.add_argument_group("what to look at")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--feature", type=numbers_or_words, nargs="+", metavar="F", help="features of the sparse "
                      "autoencoder by number, range (0-199) or label; live: all that are active in the capture")
    what.add_argument("--channel", type=numbers, nargs="+", metavar="C", help="raw channels at the hook point")
    what.add_argument("--thesis", action="store_true", help="the thesis' five features, or the weights' own five, with "
                      "word and example prompt, on one page")
    group.add_argument("--hook-point", metavar="NAME", help="attention, resnet or convolution by its name in "
                       "the UNet (default: the autoencoder's, or up1.1)")
    group.add_argument("--timestep", type=moment, nargs="+", metavar="T",
                       help="0..999; auto: 0 and the peaks of the feature's activity; active: 0 and all sampling "
                       "steps at which it is active (default: the weights' own, else auto)")
    group.add_argument("--seed", type=int, nargs="+", metavar="S",
                       help=f"a result each (default: {' '.join(map(str, SEEDS))})")
    group = parser.add_argument_group("how")
    add_model(group)
    group.add_argument("--batch-size", type=int, metavar="B", help="jobs that are computed together, at most (default: "
                       "what fits the device)")
    add_shard(group)
    group.add_argument("--check", action="store_true", help="say what would run, how long, in what memory; then stop")
    group = parser.add_argument_group("where to, and what beside the result")
    add_out(group)
    group.add_argument("--frames", type=int, default=FRAMES, metavar="N",
                       help=f"pictures of the course to keep, 2 to 50, or 0 (default: {FRAMES})")
    group.add_argument("--again", action="store_true", help="compute results again that are there already")
    group = group.add_mutually_exclusive_group()
    group.add_argument("--trace", type=int, nargs="+", metavar="K", help="no results: open up these steps instead")
    group.add_argument("--sweep", nargs="+", default=[], metavar="NAME=V,V",
                       help="every combination of these settings on one sheet, by default of one time step and seed")
    add_settings(parser.add_argument_group(
        "settings of the method", "in brackets what the preset sae has, and raw where it differs; weights may bring "
        "their own; docs/method.md explains each"))
    return parser.parse_args(argv)


def check_flags(args, given):
    """Raise ValueError for what is wrong whatever the model, before torch is imported."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.frames != 0 and not 2 <= args.frames <= 50:
        raise ValueError(f"--frames must be 0 or between 2 and 50, got {args.frames}")
    for name, value in given.items():
        check_setting(name, SETTINGS[name], value)


# --- flags -> model ---------------------------------------------------------------------------------------------------

def is_whole(path, feature):
    """Tell whether a folder holds a model, with an SAE where a feature is wanted."""
    parts = all(any((path / part).glob("*.safetensors")) for part in ("unet", "vae", "text_encoder"))
    return parts and (not feature or any(path.glob("sae/*/sae.safetensors")))


def choose_weights(path, kind, targets):
    """Return the folder to load: the one that is named, or for a feature or channel Stable Diffusion's where it is, else
    the toy. Where Stable Diffusion is wanted and missing, a terminal is asked whether to fetch it; elsewhere ValueError
    with the command."""
    feature, whole = kind == "feature", [n for n in targets if isinstance(n, int)]
    if path:
        name = path.name if path.resolve().parent == TOY.parent and path.name in PUBLISHED else None
        if name and not is_whole(path, feature):
            return offer(name, f"{path}: is {'not whole' if path.exists() else 'not there'}")
        return path
    for name in PUBLISHED if targets else ():
        if is_whole(TOY.parent / name, feature):
            return TOY.parent / name
    has, most = toy_size(kind), SD_FEATURES if feature else SD_CHANNELS
    if beyond := [n for n in whole if has <= n < most]:
        return offer("style50", f"--{kind} {beyond[0]}: the toy has {has} {kind}s, 0..{has - 1}; Stable Diffusion's "
                     f"autoencoder has it, 0..{most - 1}")
    return TOY


def toy_size(kind):
    """Return how many features or channels the toy has."""
    from weights.load import read_json
    config = read_json(next(TOY.glob("sae/*/cfg.json")))
    return config["num_latents"] if kind == "feature" else config["d_in"]


def offer(bundle, why):
    """Fetch a bundle where somebody at a terminal agrees, and return its folder; else ValueError with the command."""
    from weights import fetch
    if sys.stdin and sys.stdin.isatty() and sys.stderr.isatty():
        warn(why)
        print(f"Fetch {fetch.describe(bundle)}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            fetch.fetch(bundle)
            return TOY.parent / bundle
    raise ValueError(f"{why}; python weights/fetch.py {bundle} fetches {fetch.describe(bundle)}")


def open_model(path, device, dtype, hook_point, kind, numbers_too):
    """Load the model at its hook point; ValueError for a feature away from its SAE. numbers_too: look for NaN in all."""
    from weights.load import load
    model = load(path, device, dtype)
    if hook_point:
        model = model.at(hook_point)
    if kind == "feature":
        model.require("sae")
    if numbers_too:
        model.check_numbers()
    return model


# --- model -> jobs ----------------------------------------------------------------------------------------------------

def choose_targets(model, kind, given, out):
    """Return the numbers of the features or channels that were named by number, label or `live`, each once."""
    from activity.profile import find_capture
    if not given:
        return [model.settings.get("feature", 0)] if kind == "feature" else [0]
    found = []
    for n in given:
        if n == "live":
            capture = find_capture(model, out)
            if capture is None:
                raise ValueError(f"--feature live: {model.folder} has no capture that says which are active; run python "
                                 f"-m activity capture --weights {model.folder}")
            found += capture.live(kind)
        elif isinstance(n, str):
            labelled = [number for number, word in model.labels.items() if word.lower() == n.lower()]
            if not labelled:
                known = nearest(n, list(model.labels.values())) or "none: it has no labels.json"
                raise ValueError(f"--feature {n}: {model.folder} labels no feature so; nearest: {known}")
            found += labelled
        else:
            found.append(n)
    return list(dict.fromkeys(found))


def attach_capture(model, out, needed, check, batch_size):
    """Attach the capture of these weights; where one is needed and missing, a small one is made first."""
    from activity.probe import small_capture
    from activity.profile import find_capture
    model.capture = find_capture(model, out)
    if needed and model.capture is None and not check:
        model.capture = small_capture(model, out, batch_size, CaptureProgress(),
                                      ", or do without: --prior noise --timestep 361")


def swept(config, axes):
    """Return the configs of all combinations of axes [(name, values)], the last changing fastest."""
    names = [name for name, _ in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--sweep {twice[0]}: this setting is given twice; give all of its values in one place")
    return [dataclasses.replace(config, **dict(zip(names, values)))
            for values in itertools.product(*(values for _, values in axes))]


# --- jobs -> results --------------------------------------------------------------------------------------------------

def run(args):
    """Compute all results that are not there yet, each written as soon as its batch is done; return the exit code."""
    kind = "channel" if args.channel else "feature"
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    check_flags(args, given)
    axes = [axis(text) for text in args.sweep]
    targets = list(itertools.chain(*(args.channel or args.feature or [])))
    rank, shards = find_shard(args.shard)
    path = choose_weights(args.weights, kind, targets or ["live"] * args.thesis)

    from visualize import batch_rows, list_jobs
    model = open_model(path, args.device, args.dtype, args.hook_point, kind, args.check)
    config = configure(model.settings, args.preset, kind, **given)
    configs = swept(config, axes)
    for one in configs:
        check_config(one, min(model.latent_shape[1:]), len(model.schedule))
    if args.trace and not all(0 <= k < config.num_steps for k in args.trace):
        raise ValueError(f"--trace {' '.join(map(str, args.trace))}: the ascent has {config.num_steps} steps, "
                         f"0..{config.num_steps - 1} (--num-steps sets how many)")
    if args.thesis:
        from activity.thesis import features
        targets = [row["feature"] for row in features(model)]
    targets = choose_targets(model, kind, targets, args.out)
    seeds = args.seed or SEEDS[:1 if axes else None]
    times = args.timestep or ([model.settings.get("timestep", 0)] if axes else None)
    list_jobs(model, kind, targets, seeds, [t for t in times or () if isinstance(t, int)] or [0])
    words = not times and "timestep" not in model.settings or any(isinstance(t, str) for t in times or ())
    attach_capture(model, args.out, words or any(one.prior == "steer" for one in configs), args.check, args.batch_size)
    if args.check:
        times = times if model.capture or not words else [0, 361]
        return check(model, list_jobs(model, kind, targets[rank::shards], seeds, times), configs, args.batch_size)
    jobs = list_jobs(model, kind, targets[rank::shards], seeds, times) if targets[rank::shards] else []
    if not jobs:
        warn("there are fewer features than processes: nothing to do for this one")
        return 0
    size = args.batch_size or batch_rows(model, jobs, config)
    usual = configure(model.settings, None, kind)
    if args.trace:
        return trace(model, jobs, config, usual, args.trace, args.out, size)
    failed = compute(model, jobs, configs, usual, size, args.frames, args.again, args.out)
    return show(model, jobs, configs, usual, [name for name, _ in axes], args.thesis, args.out) or (2 if failed else 0)


def compute(model, jobs, configs, usual, size, frames, again, out):
    """Compute what is missing and print a line for each result; return the paths of those that met NaN or infinity."""
    import results
    from visualize import course_lengths, kept_steps, stream
    results.prepare(out)
    recipes = {(job, one): results.recipe(model, job, one, usual) for one in configs for job in jobs}
    why = {key: "again" if again else results.why_to_compute(out, recipe, kept_steps(key[1].num_steps, frames))
           for key, recipe in recipes.items()}
    fit = announce(model, [reason for reason in why.values() if reason], len(why), configs[0], jobs[0].kind)
    failed = []
    for one in configs:
        wanted = {job for job in jobs if why[job, one]}
        batches = sum(not wanted.isdisjoint(jobs[i:i + size]) for i in range(0, len(jobs), size))
        progress = Progress(course_lengths(one), batches)
        for batch in stream(model, jobs, one, size, wanted, frames, progress):
            for result in batch:
                if result.job in wanted:
                    path = results.save(out, result, recipes[result.job, one], fit)
                    say(f"{path}: {summary(result)}")
                    failed += [path] if result.verdict.startswith("non-finite") else []
            progress.next_batch()
    if failed:
        warn(f"featviz: {len(failed)} of {len(recipes)} ascents met NaN or infinite values, first {failed[0]}; its "
             "latent is the last finite one; try a smaller --learning-rate or --steer-scale")
    return failed


def announce(model, todo, total, config, kind):
    """Print what is there already, what is computed and why; return the fit check's warning, or ""."""
    from weights.check import fit, verdict
    if len(todo) < total:
        warn(f"{total - len(todo)} of {total} results are there already, made with the same settings")
    for reason in sorted(set(todo) - {"new", "again", "broken"}):
        warn(f"{todo.count(reason)} results were made with another {reason} and are computed again")
    if not todo:
        return ""
    warn(f"{len(todo)} results, {config.num_steps} steps, {model.folder} on {model.device}"
         + (f", after {config.prior_steps} sampling steps of the start" if config.prior != "noise" else ""))
    warning = verdict(model.sae.k, *fit(model)) if kind == "feature" else ""
    if warning:
        warn(f"warning: {warning}")
    return warning


def summary(result):
    """Say how a result ended: each picture's verdict with its own numbers."""
    said = []
    for name, one in (("ascent", result), ("finished", result.finished)):
        if one:
            rank = f", rank {one.scores['rank']}" if one.scores["rank"] else ""
            said.append(f"{name} {one.verdict}, activation {one.activation:.4f}{rank}")
    return f"start {result.scores['activation_start']:.4f}; " + "; ".join(said)


def check(model, jobs, configs, batch_size):
    """Print what a run would take, measured on one step of one batch; write nothing."""
    import time

    from ascent import ascend
    from finish import redraw
    from visualize import batch_rows, course_lengths, peak_memory, start
    from weights.check import check_fit
    config = dataclasses.replace(configs[0], prior="noise")
    size = batch_size or batch_rows(model, jobs, config)
    batch = (jobs * size)[:size]
    step = next(ascend(model, batch, config, start(model, batch, config)))          # pays for allocation
    began = time.time()
    next(ascend(model, batch, config, start(model, batch, config)))
    ascent, began = time.time() - began, time.time()
    next(redraw(model, batch, step.noised, [1], config))
    finish = time.time() - began
    lengths, batches = course_lengths(configs[0]), -(-len(jobs) // size) * len(configs)
    seconds = lambda steps: batches * (steps * ascent + (lengths["finish"] + lengths["sampling"]) * finish)
    quick = f" ({seconds(QUICK['num_steps']):.0f} s with --preset quick)" if config.num_steps > 40 else ""
    say(f"{len(jobs) * len(configs)} results at {model.hook_point} of {model.folder} on {model.device} in "
        f"{model.dtype}, {size} at a time: about {seconds(config.num_steps):.0f} s{quick}, "
        f"{peak_memory(model.device) / 2**30:.1f} GiB; {len(model.fingerprints)} files read, all names, shapes and "
        "values are sound")
    if jobs[0].kind == "feature":
        say(check_fit(model))
    return 0


def trace(model, jobs, config, usual, steps, out, size):
    """Write the page of these steps of each job's ascent and of its finish; return the exit code."""
    import results
    from pages.trace import trace
    from visualize import course_lengths
    progress = Progress(course_lengths(config), -(-len(jobs) // size))
    for path in trace(model, {job: results.recipe(model, job, config, usual) for job in jobs}, config, steps, out,
                      progress):
        progress.next_batch()
        say(f"look at {path}")
    return 0


# --- results -> pages -------------------------------------------------------------------------------------------------

def show(model, jobs, configs, usual, axes, thesis, out):
    """Write what there is to look at: each feature's activity and page, the atlas of several, the sheet of a sweep."""
    from activity.analysis import analysis, save_activity
    from pages.atlas import write_atlas
    from pages.evidence import conclusion
    from pages.feature import write_page
    from results import folder_of, path_of, recipe, times_in
    targets = list(dict.fromkeys((job.kind, job.target) for job in jobs))
    folders = {target: folder_of(out, model.name, model.hook_point, *target) for target in targets}
    for (kind, n), folder in folders.items():
        if model.capture is not None and kind != "direction":
            save_activity(folder, analysis(model, kind, n, times_in(folder)))
        page = write_page(folder)
    if axes:
        from pages.sweep import write_sweep
        for target, folder in folders.items():
            made = [recipe(model, job, one, usual) for one in configs for job in jobs
                    if (job.kind, job.target) == target]
            say(f"look at {write_sweep(folder, {path_of(out, one): one for one in made}, axes)}")
    if thesis:
        from activity.thesis import draw_examples
        from pages.thesis import write_thesis
        say(f"look at {write_thesis(*draw_examples(model, out))}")
    elif len(folders) == 1:
        say(conclusion(folder))
        say(f"look at {page}")
    else:
        say(f"look at {write_atlas(folder.parent)}")
    return 0


def main(argv=None):
    forgiving_console()
    return guarded("featviz", run, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
