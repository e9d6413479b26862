"""What a run of featviz.py says before it begins: what is there, what comes; and all that --check says."""
import dataclasses
import sys
import time

from command.progress import say
from config import QUICK


def announce(model, why, config):
    """What is there already, what comes and why, and whether UNet and SAE belong together, on stderr.

    why: {(job, its config): why it is to be made, or ""}
    """
    from weights.preflight import fit_once, verdict
    todo = [reason for reason in why.values() if reason]
    if len(todo) < len(why):
        print(f"{len(why) - len(todo)} of {len(why)} results are there already, made with the same settings",
              file=sys.stderr)
    for reason in sorted(set(todo) - {"new", "again", "broken"}):
        hint = "; --keep takes such results as they are" if reason in ("code", "torch") else ""
        print(f"{todo.count(reason)} results were made with another {reason} and are made anew{hint}", file=sys.stderr)
    if todo:
        print(f"{len(todo)} results, {config.num_steps} steps, {model.folder} on {model.device}"
              + (f", after {config.prior_steps} sampling steps of the prior" if config.prior != "noise" else ""),
              file=sys.stderr)
        if next(iter(why))[0].kind == "feature" and (warning := verdict(model.sae.k, *fit_once(model))):
            print(f"warning: {warning}", file=sys.stderr)


def check(model, jobs, config, size):
    """What --check prints: measured on one gradient of one batch, nothing written."""
    from ascent import ascend
    from command.device import peak_memory
    from finish import course_length, redraw
    from weights.preflight import check_fit
    batches, began = -(-len(jobs) // size), time.time()
    batch = (jobs * size)[:size]
    step = next(ascend(model, batch, dataclasses.replace(config, prior="noise")))
    first, began = time.time() - began, time.time()
    next(redraw(model, batch, step.transformed, [1], 0.0, config))   # a step of the finish, or of a guided start
    second = time.time() - began
    rest = course_length(config) - config.num_steps + (config.prior != "noise") * config.prior_steps
    takes = lambda steps: f"{batches * (steps * first + rest * second):.0f} s"
    fewer = QUICK["num_steps"]
    quick = f" ({takes(fewer)} with --preset quick)" if config.num_steps > fewer else ""
    say(f"{len(jobs)} results at {model.hook_point} of {model.folder} on {model.device} in {model.dtype}, {size} at a "
        f"time: about {takes(config.num_steps)}{quick}, {peak_memory(model.device) / 2**30:.1f} GiB; "
        f"{len(model.fingerprints)} files read, all names, shapes and values are sound")
    if jobs[0].kind == "feature":
        say(check_fit(model))
    return 0
