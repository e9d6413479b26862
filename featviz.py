"""See what one feature inside a latent diffusion model responds to: `python featviz.py --feature 12`.

One function a stage: flags -> model -> jobs -> results -> pages. The method itself is ascent.py, the course of one
batch visualize.py. `load` and `visualize` are for notebooks. What needs torch is imported where it is used, so that
--help and wrong flags are answered at once.
"""
import difflib
import itertools
import sys
from dataclasses import replace
from pathlib import Path

if (ROOT := str(Path(__file__).resolve().parent)) not in sys.path:      # as where PYTHONSAFEPATH is set
    sys.path.insert(0, ROOT)
from command.flags import guarded, parse  # noqa: E402
from command.progress import Progress, say, warn  # noqa: E402
from config import PRIORS, SEEDS, check_config, configure  # noqa: E402


def load(path=None, device=None, dtype=None, hook_point=None, out="out"):
    """Load a folder of weights, by default the toy, with its capture or one of your own in `out`; see weights.load."""
    from activity.profile import find_capture
    from weights.load import load
    model = load(path, device, dtype, hook_point)
    model.capture = find_capture(model, out)
    return model


def visualize(model, **what):
    """Visualise features, channels or directions of a model: [Result]; see visualize.visualize."""
    from visualize import visualize
    return visualize(model, **what)


def choose_targets(model, kind, given):
    """Return the numbers of the features or channels that were named by number, label or `live`, each once."""
    found = []
    for n in given or [model.settings.get("feature", 0) if kind == "feature" else 0]:
        if n == "live":
            if model.capture is None:
                raise ValueError(f"--feature live: {model.folder} has no capture that says which are active; run "
                                 f"python -m activity capture --weights {model.folder}")
            found += model.capture.live(kind)
        elif isinstance(n, str):
            labelled = [number for number, word in model.labels.items() if word.lower() == n.lower()]
            if not labelled:
                near = difflib.get_close_matches(n, model.labels.values(), cutoff=0.0)
                raise ValueError(f"--feature {n}: {model.folder} labels no feature so; nearest: {', '.join(near)}")
            found += labelled
        else:
            found.append(n)
    return list(dict.fromkeys(found))


def run(args, given):
    """Compute all results that are not there yet, then their pages; return the exit code."""
    kind = "channel" if args.channel else "direction" if args.direction else "feature"
    axes, (rank, shards) = dict(args.sweep), args.shard
    named = list(itertools.chain(*(args.channel or args.feature or [])))

    from activity.analysis import dead_line
    from activity.capture import full_command, probe
    from pages.thesis import features
    from results import recipe
    from visualize import batch_rows, course_lengths, list_jobs
    from weights.check import estimate
    from weights.fetch import choose_weights
    from weights.load import read_vectors
    path = choose_weights(args.weights, kind, named or ["any"] * bool(args.thesis or args.direction))
    model = load(path, args.device, args.dtype, args.hook_point, args.out)
    config = configure(model.settings, args.preset, kind, **given)
    configs = [replace(config, **dict(zip(axes, values))) for values in itertools.product(*axes.values())]
    if config.prior not in PRIORS:
        warn(f"starts from {config.prior}, cropped about its centre and scaled to the model's size")
    for one in configs:
        check_config(one, min(model.latent_shape[1:]))
    if any(not 0 <= k < config.num_steps for k in args.trace or ()):
        raise ValueError(f"--trace: the ascent has steps 0..{config.num_steps - 1}; --num-steps sets how many")

    if args.direction:
        file, *names = args.direction
        found = read_vectors(file)
        targets = names or list(found)
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"--direction {file}: holds no {missing[0]!r}; there are {', '.join(found)}")
        model.directions = {name: found[name].to(model.device) for name in targets}
    else:
        targets = choose_targets(model, kind, [row["feature"] for row in features(model)] if args.thesis else named)
    seeds = args.seed or SEEDS[:1 if axes else None]
    times = args.timestep or [model.settings.get("timestep", 0 if axes else "auto")]
    list_jobs(model, kind, targets, seeds, [t for t in times if isinstance(t, int)] or [0])     # refuses wrong ones
    needed = any(isinstance(t, str) for t in times) or any(one.prior == "steer" for one in configs)
    if needed and model.capture is None:
        if args.check:
            warn(f"{model.folder} has no capture: a small one comes first, and one time step a feature is counted")
            times = [0]
        elif shards > 1:
            raise ValueError(f"{model.folder} has no capture, which several processes need: first run "
                             f"{full_command(model)}")
        else:
            model.capture = probe(model, args.out, args.batch_size)
    targets = targets[rank::shards]
    if model.capture and (line := dead_line(model.capture, kind, targets)):
        warn(line)
    jobs = list_jobs(model, kind, targets, seeds, times)
    size = args.batch_size or batch_rows(model, jobs, config)
    if args.check:
        say(estimate(model, jobs, configs, size))
        return 0
    usual = configure(model.settings, None, kind)
    recipes = {one: {job: recipe(model, job, one, usual) for job in jobs} for one in configs}
    if args.trace:
        from pages.trace import trace
        progress = Progress(course_lengths(config), -(-len(jobs) // size))
        for page in trace(model, recipes[config], config, args.trace, args.out, progress, size):
            say(f"look at {page}")
        return 0
    sound = model.settings.get("sound", False) if args.sound is None else args.sound
    failed = compute(model, recipes, kind, size, args.frames, args.again, args.out, sound)
    show(model, recipes, list(axes), args.thesis, args.out)
    return 2 if failed else 0


def compute(model, recipes, kind, size, frames, again, out, sound):
    """Compute what is missing of {config: {job: recipe}}; return how many met NaN or infinity."""
    import results
    from audio import sounds
    from visualize import course_lengths, kept_steps, stream
    from weights.check import fit, verdict
    results.write(Path(out) / ".writable", b"")                 # or OSError, before any work is done
    (Path(out) / ".writable").unlink()
    why = {(one, job): "again" if again else
           results.why_to_compute(out, recipe, kept_steps(one.num_steps, frames), sound)
           for one, made in recipes.items() for job, recipe in made.items()}
    todo, failed = [reason for reason in why.values() if reason], []
    if len(todo) < len(why):
        warn(f"{len(why) - len(todo)} of {len(why)} results are there already, made with the same settings")
    if todo:
        warn(f"{len(todo)} results to compute with {model.folder} on {model.device}")
    if "other" in todo:
        warn(f"{todo.count('other')} results were made with other weights or other code and are computed again")
    warning = verdict(model.sae, fit(model)) if todo and kind == "feature" else ""
    if warning:
        warn(f"warning: {warning}")
    for one, made in recipes.items():
        jobs, wanted = list(made), {job for job in made if why[one, job]}
        batches = sum(not wanted.isdisjoint(jobs[i:i + size]) for i in range(0, len(jobs), size))
        for batch in stream(model, jobs, one, size, wanted, frames, Progress(course_lengths(one), batches)):
            for result in batch:
                if result.job in wanted:
                    path = results.save(out, result, made[result.job], warning, sounds(result) if sound else {})
                    said = [f"{name} {r.verdict}, activation {r.activation:.4f}, rank {r.scores['rank'] or '-'}"
                            for name, r in (("ascent", result), ("finished", result.finished)) if r]
                    say(f"{path}: start {result.scores['activation_start']:.4f}; {'; '.join(said)}")
                    failed += [path] if result.verdict.startswith("non-finite") else []
    if failed:
        warn(f"featviz: {len(failed)} of {len(why)} ascents met NaN or infinite values, first {failed[0]}; its "
             "latent is the last finite one; try a smaller --learning-rate or --steer-scale")
    return len(failed)


def show(model, recipes, axes, thesis, out):
    """Write what there is to look at: each target's activity and page, the sheet of a sweep, the atlas of several."""
    from activity.analysis import analysis, save_activity
    from pages.atlas import write_atlas
    from pages.evidence import conclusion
    from pages.feature import write_page
    from pages.sheet import write_sweep
    from pages.thesis import write_thesis
    from results import folder_of, path_of, read_results
    made = [(job, recipe) for one in recipes.values() for job, recipe in one.items()]
    targets = list(dict.fromkeys((job.kind, job.target) for job, _ in made))
    for kind, n in targets:
        folder = folder_of(out, model.name, model.hook_point, kind, n)
        if model.capture is not None and kind != "direction":
            save_activity(folder, analysis(model, kind, n, {r.t for r in read_results(folder)}))
        page = write_page(folder, atlas=len(targets) > 1)
        if axes:
            paths = [path_of(out, recipe) for job, recipe in made if job.target == n]
            say(f"look at {write_sweep(folder, paths, axes)}")
    if thesis:
        say(f"look at {write_thesis(model, out)}")
    elif len(targets) > 1:
        say(f"look at {write_atlas(folder.parent)}")
    else:
        for line in conclusion(folder).split("; "):             # what it seems to be, how sure
            say(line)
        say(f"look at {page}")


def main(argv=None):
    return guarded("featviz", lambda: run(*parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
