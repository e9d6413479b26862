"""Sentences of the pages: numbers to read, verdicts with their numbers, meanings of terms, the command of a result."""
import shlex

from config import HOOK_POINT, SETTINGS, flag

FRAMES = 8                  # pictures of the course that a run keeps when no flag says otherwise
VERDICTS = {                # in the order of visualize.judge_result: the first that holds is the verdict
    "non-finite": "Numbers ran out of range. This is the last sound picture.",
    "silent": "At the end its activation is 0.",
    "weak": "It ended no higher than it started.",
    "fragile": "Decoding and encoding the picture loses over half its activation.",
    "raised": "It rose, but too little: see the numbers beside it.",
    "excited": "It rose, outlasts encoding, and ranks among the ten strongest."}
TERMS = {
    "activation": "How strongly the {kind} responds, averaged over places and four noises.",
    "rank": "Its place among all {kind}s by activation. 1 is the strongest.",
    "ascent": "Made by gradient ascent: small steps that raise the activation.",
    "finished": "The ascent's picture, redrawn by the model while the {kind} pulls.",
    "re-encoded": "Measured on the visible picture, after decoding and encoding it.",
    "hook point": "The place in the network where the {kind} is measured.",
    "time step": "How much noise covers the picture: 0 none, 999 nearly all.",
    "seed": "The number that fixes the random start.",
    "dataset image": "A picture that the model drew from a prompt, for comparison.",
    "agreement": "How often its pictures beat others at resembling its dataset images. 0.5 is chance."}
RULE = ("A rule chose it, no person. Usual settings come first, then excited pictures. "
        "Then it compares with the strongest dataset image, where that is fair. "
        "Equals are ordered by noise, then by re-encoded activation.")


def short(value):
    """Format a number to read."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def count(n, thing):
    """Format a number of things: "1 file", "1,200 files"."""
    return f"{n:,} {thing}{'s' * (n != 1)}"


def label(r):
    """Name a result, for headings and alternative texts."""
    return f"{r.kind} {r.target}, time step {r.t}, seed {r.seed}" + (f", {typed(r)}" if typed(r) else "")


def reason(r):
    """Explain a picture's verdict by its own numbers, in one sentence."""
    start, end, again, rank, most = (r.scores.get(name) for name in (
        "activation_start", "activation", "activation_reencoded", "rank", "dataset_largest"))
    said = {"weak": f"It started at {short(start)} and ended at {short(end)}.",
            "fragile": f"Re-encoded, it has {short(again)}: over half of {short(end)} is lost.",
            "excited": f"Re-encoded, it still has {short(again)}.",
            "raised": f"Rank {short(rank)} is not among the first ten."}
    if r.verdict == "raised" and rank is not None and rank <= 10 and most:
        return f"Under half of the strongest dataset image's {short(most)}."
    return said.get(r.verdict, VERDICTS.get(r.verdict.partition(" ")[0], ""))


def flags(recipe):
    """List the settings of a recipe that are not usual, as they are typed: ["--no-noise", "--num-steps", "3"]."""
    words = []
    for name, value in recipe["differs"].items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no-{name}"))
        elif isinstance(value, (list, tuple)):
            words += [flag(name), *map(str, value)]
        elif name in SETTINGS or name == "dtype":
            words += [flag(name), str(value)]
    return words


def typed(r):
    """Join a result's unusual settings as they are typed; "" where there are none."""
    return shlex.join(flags(r.recipe))


def command(recipe, times, seeds, frames=FRAMES):
    """Write the command that makes this recipe's result at these time steps and seeds."""
    job, hook = recipe["job"], recipe["hook_point"]
    words = ["python", "featviz.py", "--weights", f"weights/{recipe['weights']}", f"--{job['kind']}"]
    words += ["FILE.safetensors"] * (job["kind"] == "direction") + [job["target"]]
    words += ["--hook-point", hook] if job["kind"] != "feature" or hook != HOOK_POINT else []
    words += ["--timestep", *times, "--seed", *seeds, "--device", recipe["device"], *flags(recipe)]
    words += ["--frames", frames] if frames != FRAMES else []
    return shlex.join(map(str, words))


def commands(found):
    """Write the commands of all results: one for those that differ in the seed alone."""
    alike = {}
    for r in found:
        alike.setdefault((r.folder, r.recipe["device"], len(r.steps)), []).append(r)
    return [command(group[0].recipe, [group[0].t], [r.seed for r in group], len(group[0].steps))
            for group in alike.values()]
