"""The Markdown tables of bench/speed.py, and what a whole SAE would cost, worked out from counted operations."""
import torch

from bench import ways
from config import QUICK, Config
from unet import UNet
from vae import VAE

# What a whole SAE takes, on paper: assumptions
CARD, PEAK = "H200", 989e12                                     # dense bfloat16 of the data sheet, operations a second
SHARE = 0.45                                                    # of it that is reached: the target; not measured here
FEATURES, TIMES, SEEDS, STEPS, PRIOR_STEPS = 20480, 4, 5, 100, 51  # PNDM calls the UNet once more than 50
SCORES = 13  # forward passes to the hook: start, end, no noise, encoded again
SAE_POSITIONS, SAE_WIDTH = 256, 1280


def paper(_folder=None):
    """Operations of all features x time steps x seeds, and hours on 1 and 8 cards."""
    from torch.utils.flop_counter import FlopCounterMode         # as in ways.count
    shape = (4, 64, 64)
    with torch.device("meta"):
        net, vae = UNet(), VAE()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encode(vae.decode(torch.empty(1, *shape)))
    step, forward, whole = (
        ways.count(net, shape)[0],
        ways.count(net, shape, backward=False)[0],
        ways.count(net, shape, until=None, backward=False)[0],
    )
    sae = 2 * SAE_POSITIONS * SAE_WIDTH * FEATURES
    parts = {"ascent": STEPS * step, "its share of the steered prior": PRIOR_STEPS * whole / TIMES,
             "scores": SCORES * (forward + sae), "decode, encode": counter.get_total_flops()}
    jobs = FEATURES * TIMES * SEEDS
    total = jobs * sum(parts.values())
    return {"operations": {"step": step, "to the hook": forward, "whole UNet": whole, "SAE": sae}, "of one job": parts,
            "jobs": jobs, "total": total,
            "hours": {cards: total / (SHARE * PEAK * cards) / 3600 for cards in (1, 8)}}


def markdown(results):
    """All tables of what has been measured."""
    out = []
    for size, found in results.get("step", {}).items():
        out += step_table(size, found, results["machine"]["step"])
    if "memory" in results:
        out += ["", "| peak memory, loading included, batch 1 | GB |", "|---|---|"]
        out += [f"| {r['way']}, {r['dtype']} | {r['device'] / 1e9:.2f} |" for r in results["memory"]["rows"]]
    if "toy" in results:
        out += toy_table(results["toy"])
    if "space" in results:
        out += space_table(results["space"], results["machine"]["space"])
    if "paper" in results:
        out += paper_table(results["paper"])
    return "\n".join(out)


def step_table(size, found, machine):
    """A row for each batch, way and precision; the floor in both ways of measuring the machine's rate."""
    operations, fewer = found["operations"], QUICK["num_steps"] / Config().num_steps
    out = [
        "",
        f"{'Full size' if size == 'full' else 'Toy'} on {machine}: "
        f"{operations / 1e9:.3g} GFLOP a step and job, of which attention maps "
        f"{found['operations_of_attention'] / 1e9:.3g}",
        "",
        "| batch | way | precision | seconds a step | steps/s x jobs | of the original "
        f"| quick's {QUICK['num_steps']} of its {Config().num_steps} steps | of the floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for batch in sorted({r["batch"] for r in found["rows"]}):
        rows = [r for r in found["rows"] if r["batch"] == batch]
        base = next((r["seconds"] for r in rows if r["way"] == "original" and r["dtype"] == "float32"), None)
        for r in rows:
            floor = batch * operations / found["rate"][r["dtype"]]["torch"]
            share = f"{r['seconds'] / base:.2f}" if base else ""
            quick = f"{fewer * r['seconds'] / base:.2f}" if base and r["way"] == "ours" else ""
            out.append(
                f"| {batch} | {r['way']} | {r['dtype']} | {r['seconds']:.3g} | {batch / r['seconds']:.3g} | {share} | "
                f"{quick} | {r['seconds'] / floor:.2f} |"
            )
    for dtype, rate in found["rate"].items():
        for way, r in rate.items():
            out.append(
                f"| 1 | floor, product by {way} at {r / 1e9:.0f} GFLOP/s | {dtype} | {operations / r:.3g} "
                f"| {r / operations:.3g} | | | |"
            )
    return out


def toy_table(toy):
    goal, whole = toy["seconds_to_goal"], toy["seconds_of_100_steps_5_seeds"]
    return [
        "",
        "| toy | seconds |",
        "|---|---|",
        f"| 100 steps x 5 seeds, the original's way | {whole['original']['seconds']:.1f} |",
        f"| 100 steps x 5 seeds, ours | {whole['ours']['seconds']:.1f} |",
        f"| to the activation of the original's 100 steps ({toy['activation_goal']:.2f}), the original's way "
        f"| {goal['original']['seconds']:.1f} |",
        f"| the same, ours | {goal['ours']['seconds']:.1f} |",
        *(["| the same, ours with --preset quick | "
           + (f"{goal['quick']['seconds']:.1f} |" if goal["quick"] else "not reached |")] if "quick" in goal else []),
        "| from `python featviz.py --timestep 600 --prior noise --seed 1024` to its picture "
        f"| {toy['seconds_from_command_to_picture']['seconds']:.1f} |",
        f"| the same with 5 seeds | {toy['seconds_from_command_to_5_pictures']['seconds']:.1f} |",
    ]


def space_table(space, machine):
    """The latent against the pixels: what a step takes of one job, and how many times the latent's the pixels' is."""
    columns = (("operations", 1e9), ("seconds", 1), ("device", 1e9))
    out = ["", f"On {machine}, float32, batch 1", "",
           "| | moved | GFLOP a step | processor seconds a step | peak memory, GB |", "|---|---|---|---|---|"]
    for size, found in space.items():
        latent, pixel = found["rows"]
        for name, row in (("the latent", latent), ("pixels", pixel)):
            out.append(f"| {size} | {name} | " + " | ".join(f"{row[key] / unit:.3g}" for key, unit in columns) + " |")
        out.append(f"| {size} | pixels / latent | "
                   + " | ".join(f"{pixel[key] / latent[key]:.2f}" for key, _ in columns) + " |")
    return out


def paper_table(paper):
    """The arithmetic, line by line. A computation, no measurement."""
    tera, parts = (lambda n: f"{n / 1e12:.3g}"), paper["of one job"]
    rows = [("a step: UNet to the hook, forward and backward", paper["operations"]["step"], ""),
            *((name, n,
               {"ascent": f"{STEPS} steps",
                "its share of the steered prior": f"{PRIOR_STEPS} passes of the whole UNet at "
                         f"{tera(paper['operations']['whole UNet'])}, for {TIMES} time steps",
                         "scores": f"{SCORES} passes to the hook and through the SAE"}.get(name, "")) for name,
              n in parts.items()),
            ("one job, --frames 0", sum(parts.values()), ""),
            (f"{paper['jobs']:,} jobs", paper["total"], f"{FEATURES} features x {TIMES} time steps x {SEEDS} seeds")]
    time = ", ".join(f"{hours:.1f} h on {n} {CARD}" for n, hours in paper["hours"].items())
    return ["",
            f"Computed, not measured; assumed: {SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s, {CARD}s that share nothing",
            "",
            "| | TFLOP | |", "|---|---|---|", *(f"| {name} | {tera(n)} | {note} |" for name, n, note in rows), "",
            f"All: {time}."]
