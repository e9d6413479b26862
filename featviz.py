"""See what one feature inside a latent diffusion model responds to: `python featviz.py --feature 12`.

The way from what you type to what you look at, one function a stage: flags -> model -> jobs -> results -> pages. The
method itself is ascent.py, the course of one batch visualize.py. Whatever cannot be ends in one line on stderr that
says what to do, and exit code 2. In a notebook:

    import featviz
    model = featviz.load("weights/toy")
    featviz.visualize(model, features=[4])[0]

What needs torch is imported where it is used, so that --help and wrong flags are answered at once.
"""
import itertools
import sys
from dataclasses import replace
from pathlib import Path

if (ROOT := str(Path(__file__).resolve().parent)) not in sys.path:      # as where PYTHONSAFEPATH is set
    sys.path.insert(0, ROOT)
from command.flags import find_shard, forgiving_console, guarded, nearest  # noqa: E402
from command.parser import check_flags, parse, read_axes  # noqa: E402
from command.progress import CaptureProgress, Progress, say, warn  # noqa: E402
from config import PRIORS, SEEDS, check_config, configure  # noqa: E402


# --- for notebooks ----------------------------------------------------------------------------------------------------

def load(path=None, device=None, dtype=None, hook_point=None, out="out"):
    """Load a folder of weights, by default the toy, with its capture where there is one; see weights.load.load.

    out  the folder of results, where a capture of your own may be
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


# --- flags -> model, jobs ---------------------------------------------------------------------------------------------

def read_directions(model, path, *names):
    """Read vectors (D,) from a safetensors file, all or those that are named: {name: vector}."""
    from weights.load import read_vectors
    found = read_vectors(path, model.unet.width(model.hook_point))
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"--direction {path}: holds no {missing[0]!r}; there are {', '.join(found)}")
    return {name: found[name].to(model.device) for name in names or found}


def choose_targets(model, kind, given):
    """Return the numbers of the features or channels that were named by number, label or `live`, each once."""
    found = []
    if kind == "direction":
        return given
    for n in given or [model.settings.get("feature", 0) if kind == "feature" else 0]:
        if n == "live":
            if model.capture is None:
                raise ValueError(f"--feature live: {model.folder} has no capture that says which are active; run "
                                 f"python -m activity capture --weights {model.folder}")
            found += model.capture.live(kind)
        elif isinstance(n, str):
            labelled = [number for number, word in model.labels.items() if word.lower() == n.lower()]
            if not labelled:
                known = nearest(n, list(model.labels.values())) or "none: it has no labels.json"
                raise ValueError(f"--feature {n}: {model.folder} labels no feature so; nearest: {known}")
            found += labelled
        else:
            found.append(n)
    return list(dict.fromkeys(found))


def run(args, given):
    """Compute all results that are not there yet, then their pages; return the exit code."""
    kind = "channel" if args.channel else "direction" if args.direction else "feature"
    axes, shard = read_axes(args.sweep), find_shard(args.shard)
    check_flags(args.batch_size, args.frames, given)
    named = list(itertools.chain(*(args.channel or args.feature or [])))

    from activity.card import dead_line
    from activity.probe import full_command, small_capture
    from activity.thesis import features
    from visualize import batch_rows, list_jobs
    from weights.choose import choose_weights
    path = choose_weights(args.weights, kind, named or ["any"] * bool(args.thesis or args.direction))
    model = load(path, args.device, args.dtype, args.hook_point, args.out)
    if kind == "feature":
        model.require("sae")
    if args.direction:
        model.directions = read_directions(model, *args.direction)
        named = list(model.directions)
    config = configure(model.settings, args.preset, kind, **given)
    configs = [replace(config, **dict(zip(axes, values))) for values in itertools.product(*axes.values())]
    if config.prior not in PRIORS:
        warn(f"starts from {config.prior}, cropped about its centre and scaled to the model's size")
    for one in configs:
        check_config(one, min(model.latent_shape[1:]), len(model.schedule))
    if bad := [k for k in args.trace or () if not 0 <= k < config.num_steps]:
        raise ValueError(f"--trace {bad[0]}: the ascent has {config.num_steps} steps, 0..{config.num_steps - 1} "
                         "(--num-steps sets how many)")

    named = [row["feature"] for row in features(model)] if args.thesis else named
    targets = choose_targets(model, kind, named)
    seeds = args.seed or SEEDS[:1 if axes else None]
    times = args.timestep or ([model.settings.get("timestep", 0)] if axes else None)
    list_jobs(model, kind, targets, seeds, [t for t in times or () if isinstance(t, int)] or [0])   # refuses wrong ones
    words = not times and "timestep" not in model.settings or any(isinstance(t, str) for t in times or ())
    if model.capture is None and (words or any(one.prior == "steer" for one in configs)):
        if args.check:
            warn(f"{model.folder} has no capture: a small one comes first, and time steps are counted as two a feature")
            times = [0, 361] if words else times
        elif shard[1] > 1:
            raise ValueError(f"{model.folder} has no capture, which several processes need: run {full_command(model)} "
                             "first")
        else:
            model.capture = small_capture(model, args.out, args.batch_size, CaptureProgress(),
                                          ", or do without: --prior noise --timestep 361")
    mine = targets[shard[0]::shard[1]]
    if not mine:
        warn("there are fewer features than processes: nothing to do for this one")
        return 0
    jobs = list_jobs(model, kind, mine, seeds, times)
    if model.capture and (line := dead_line(model.capture, kind, mine)):
        warn(line)
    if args.check:
        return check(model, jobs * len(configs), configs[0], args.batch_size)
    size, usual = args.batch_size or batch_rows(model, jobs, config), configure(model.settings, None, kind)
    if args.trace:
        return trace(model, jobs, config, usual, args.trace, args.out, size)
    sound = model.settings.get("sound", False) if args.sound is None else args.sound
    failed = compute(model, jobs, configs, usual, size, args.frames, args.again, args.out, sound)
    show(model, jobs, configs, usual, list(axes), args.thesis, args.out)
    return 2 if failed else 0


def check(model, jobs, config, batch_size):
    """Print what a run would take, measured on one step of one batch; write nothing."""
    from visualize import batch_rows, course_lengths
    from weights.check import check_fit
    from weights.cost import peak_memory, step_seconds
    model.check_numbers()
    size, quick = batch_size or batch_rows(model, jobs, config), configure(model.settings, "quick", jobs[0].kind)
    cost = step_seconds(model, (jobs * size)[:size], config)
    seconds = [-(-len(jobs) // size) * sum(cost[phase] * n for phase, n in course_lengths(one).items())
               for one in (config, replace(config, num_steps=quick.num_steps))]
    say(f"{len(jobs)} results at {model.hook_point} of {model.folder} on {model.device} in {model.dtype}, {size} at a "
        f"time: about {seconds[0]:.0f} s ({seconds[1]:.0f} s with --preset quick), "
        f"{peak_memory(model.device) / 2**30:.1f} GiB; {len(model.fingerprints)} files read, all names, shapes and "
        "values are sound")
    if jobs[0].kind == "feature":
        say(check_fit(model))
    return 0


# --- jobs -> results --------------------------------------------------------------------------------------------------

def compute(model, jobs, configs, usual, size, frames, again, out, sound=False):
    """Compute what is missing and print a line for each result; return how many met NaN or infinity."""
    import results
    from audio.beside import sounds
    from visualize import course_lengths, kept_steps, stream
    results.prepare(out)
    recipes = {(job, one): results.recipe(model, job, one, usual) for one in configs for job in jobs}
    why = {key: "again" if again else results.why_to_compute(out, recipe, kept_steps(key[1].num_steps, frames), sound)
           for key, recipe in recipes.items()}
    fit, failed = announce(model, list(why.values()), configs[0], jobs[0].kind), []
    for one in configs:
        wanted = {job for job in jobs if why[job, one]}
        batches = sum(not wanted.isdisjoint(jobs[i:i + size]) for i in range(0, len(jobs), size))
        progress = Progress(course_lengths(one), batches)
        for batch in stream(model, jobs, one, size, wanted, frames, progress):
            for result in batch:
                if result.job in wanted:
                    path = results.save(out, result, recipes[result.job, one], fit, sounds(result) if sound else {})
                    say(f"{path}: {summary(result)}")
                    failed += [path] if result.verdict.startswith("non-finite") else []
            progress.next_batch()
    if failed:
        warn(f"featviz: {len(failed)} of {len(recipes)} ascents met NaN or infinite values, first {failed[0]}; its "
             "latent is the last finite one; try a smaller --learning-rate or --steer-scale")
    return len(failed)


def announce(model, why, config, kind):
    """Print what is there already, what is computed and why; return the fit check's warning, or ""."""
    from weights.check import fit, verdict
    todo = [reason for reason in why if reason]
    if len(todo) < len(why):
        warn(f"{len(why) - len(todo)} of {len(why)} results are there already, made with the same settings")
    for reason in sorted(set(todo) - {"new", "again", "broken"}):
        name = {"fingerprints": "file of weights", "torch": "version of torch"}.get(reason, reason)
        warn(f"{todo.count(reason)} results were made with another {name} and are computed again")
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
    said = [f"start {result.scores['activation_start']:.4f}"]
    for name, one in (("ascent", result), ("finished", result.finished)):
        if one:
            rank = f", rank {one.scores['rank']}" if one.scores["rank"] else ""
            said.append(f"{name} {one.verdict}, activation {one.activation:.4f}{rank}")
    return "; ".join(said)


def trace(model, jobs, config, usual, steps, out, size):
    """Write the page of these steps of each job's course; return the exit code."""
    from pages.trace import trace
    from results import recipe
    from visualize import course_lengths
    progress = Progress(course_lengths(config), -(-len(jobs) // size))
    recipes = {job: recipe(model, job, config, usual) for job in jobs}
    for path in trace(model, recipes, config, steps, out, progress, size):
        say(f"look at {path}")
    return 0


# --- results -> pages -------------------------------------------------------------------------------------------------

def show(model, jobs, configs, usual, axes, thesis, out):
    """Write what there is to look at: each feature's activity and page, the sheet of a sweep, the atlas of several."""
    from activity.analysis import analysis, save_activity
    from pages.atlas import write_atlas
    from pages.evidence import conclusion
    from pages.feature import write_page
    from pages.sheet import write_sweep
    from pages.thesis import write_thesis
    from results import folder_of, path_of, recipe, times_in
    targets = list(dict.fromkeys((job.kind, job.target) for job in jobs))
    folders = {target: folder_of(out, model.name, model.hook_point, *target) for target in targets}
    for (kind, n), folder in folders.items():
        if model.capture is not None and kind != "direction":
            save_activity(folder, analysis(model, kind, n, times_in(folder)))
        page = write_page(folder, {other.name for other in folders.values()})
        if axes:
            made = [recipe(model, job, one, usual) for one in configs for job in jobs if job.target == n]
            say(f"look at {write_sweep(folder, {path_of(out, one): one for one in made}, axes)}")
    if thesis:
        say(f"look at {write_thesis(model, out)}")
    elif len(folders) > 1:
        say(f"look at {write_atlas(folder.parent)}")
    else:
        say(conclusion(folder))
        say(f"look at {page}")


def main(argv=None):
    forgiving_console()
    return guarded("featviz", run, *parse(argv))


if __name__ == "__main__":
    sys.exit(main())
