"""The parts of bench/gpu.sh that are no command of their own: python -m bench.gpu PART --work FOLDER

    weights    write random weights of full size where there are none
    parity     the device against the CPU: the hook's output and the gradient of its sum, float32 and bfloat16
    batches    seconds a step and peak memory of batches of 1, 2, 4, ... up to what fits, against the prediction
    both       two processes shared the jobs: every result is there
    report     FOLDER's findings and times -> OUT/gpu_<name>.json, and the table for the documents
"""
import argparse
import json
import re
import statistics
import sys
from pathlib import Path

import torch

from bench import ways
from weights.disk import replacing
from weights.load import find, load
from weights.preflight import free_bytes, predict

LIMITS = {"float32": (1e-4, 1e-3), "bfloat16": (0.05, 0.15)}     # of values and gradient, |difference| / |reference|
ROOM, OVER = 0.9, 1.25                  # share of the free memory to use; how much a peak may exceed its prediction
LARGEST = 512


def write(work, part, found):
    with replacing(work / f"{part}.json") as file:
        file.write(json.dumps(found, indent=1).encode() + b"\n")


def outputs(model, z, t):
    """(hook's output, gradient of its sum with respect to z), float32 on the CPU."""
    z = z.to(model.device).requires_grad_(True)
    context = model.embed([""]).expand(len(z), -1, -1)
    h = model.unet(z.to(model.dtype), t.to(model.device), context, until=model.hook_point).float()
    return h.detach().cpu(), torch.autograd.grad(h.sum(), z)[0].cpu()


def parity(args):
    """Relative errors; exit code 1 beyond LIMITS. Convolutions keep float32 whole here, where cuDNN would round."""
    torch.backends.cudnn.allow_tf32 = False
    reference = load(args.weights)
    z = torch.randn(2, *reference.latent_shape, generator=torch.Generator().manual_seed(0))
    t, found, failed = torch.tensor([41, 761]), {}, []
    expected = outputs(reference, z, t)
    for dtype, limits in LIMITS.items():
        got = outputs(load(args.weights, args.device, getattr(torch, dtype)), z, t)
        found[dtype] = [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected)]
        print(f"{dtype}: value {found[dtype][0]:.1e}, gradient {found[dtype][1]:.1e}, at most {limits}")
        failed += [dtype for error, limit in zip(found[dtype], limits) if not error <= limit]
    write(args.work, "parity", found)
    return f"too far from the CPU: {', '.join(dict.fromkeys(failed))}" if failed else 0


def batches(args):
    """Rows of seconds a step, bytes at the peak and bytes predicted, in the device's usual precision."""
    cuda = args.device.startswith("cuda")
    dtype = torch.bfloat16 if cuda else torch.float32
    found, rows, over = find(args.weights), [], []
    model, free, batch = load(args.weights, args.device, dtype), free_bytes(args.device), 1
    while batch <= (2 if args.quick else LARGEST) and predict(found, dtype, batch)[1] < ROOM * free:
        run = ways.ours(model, ways.jobs_of(model, batch), ways.endless(model))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            times = [ways.seconds(lambda: next(run), args.device) for _ in range(4)]
        except torch.OutOfMemoryError:
            print(f"batch {batch} does not fit")
            break
        run.close()
        peak, said = torch.cuda.max_memory_allocated() if cuda else None, sum(predict(found, dtype, batch))
        rows.append({"batch": batch, "seconds": statistics.median(times[1:]), "peak": peak, "predicted": said})
        print(rows[-1], flush=True)
        over += [batch] if cuda and peak > OVER * said else []
        write(args.work, "batches", rows)       # after each, for the case that the next takes too long
        batch *= 2
    return f"more memory than predicted with batches of {over}" if over else 0 if rows else "not one batch fits"


def both(args):
    """Of two features every result is there, once."""
    made = sorted(path.parent.parent.name for path in (args.work / "two").rglob("seed_1.json"))
    print(made)
    return 0 if made == ["feature_00000", "feature_00001"] else "a result is missing"


def read(path):
    return json.loads(path.read_text()) if path.exists() else None


def report(args):
    steps = [line.split("\t") for line in (args.work / "steps.tsv").read_text().splitlines()]
    speed = read(args.work / f"speed_{args.device}.json")
    found = {"machine": ways.machine(args.device),
             "steps": {name: {"seconds": int(seconds), "code": int(code)} for name, seconds, code in steps},
             "parity": read(args.work / "parity.json"), "batches": read(args.work / "batches.json"),
             "speed": speed and speed["step"]["full"], "said": {
                 part: last(args.work / f"{part}.log", r"\S.* images/s|.*: about \d+ s, \S+ GiB|.*\.png: .*")
                 for part in ("capture", "probe", "check", "picture")}}
    name = re.sub(r"\W+", "_", torch.cuda.get_device_name() if args.device == "cuda" else "cpu").lower()
    args.out.mkdir(parents=True, exist_ok=True)
    with replacing(args.out / f"gpu_{name}.json") as file:
        file.write(json.dumps(found, indent=1).encode() + b"\n")
    print(table(found))
    return 0


def last(log, pattern):
    """What a command said last that matches; "" where it never did."""
    said = re.findall(pattern, log.read_text(errors="replace")) if log.exists() else []
    return said[-1] if said else ""


def gib(n):
    return f"{n / 2**30:.2f}" if n else ""


def table(found):
    """Markdown; what a failed step would have told is left out."""
    out = [found["machine"], "", "| step | seconds | |", "|---|---|---|"]
    out += [f"| {name} | {step['seconds']} | {'' if step['code'] == 0 else 'failed'} |"
            for name, step in found["steps"].items()]
    if found["parity"]:
        out += ["", "| against float32 on the CPU | values | gradient |", "|---|---|---|"]
        out += [f"| {dtype} | {a:.1e} | {b:.1e} |" for dtype, (a, b) in found["parity"].items()]
    if found["speed"]:
        out += ["", "| batch | way | precision | steps/s x jobs | of the original's seconds | of the floor's |",
                "|---|---|---|---|---|---|"]
        rows, rate, work = found["speed"]["rows"], found["speed"]["rate"], found["speed"]["operations"]
        for r in rows:
            base = next((o["seconds"] for o in rows if (o["way"], o["dtype"], o["batch"])
                         == ("original", r["dtype"], r["batch"])), None)
            floor = r["batch"] * work / rate[r["dtype"]]["torch"]
            share = f"{r['seconds'] / base:.2f}" if base else ""
            out.append(f"| {r['batch']} | {r['way']} | {r['dtype']} | {r['batch'] / r['seconds']:.3g} | {share} "
                       f"| {r['seconds'] / floor:.2f} |")
    if found["batches"]:
        out += ["", "| batch | seconds a step | peak, GiB | predicted, GiB |", "|---|---|---|---|"]
        out += [f"| {r['batch']} | {r['seconds']:.3g} | {gib(r['peak'])} "
                f"| {gib(r['predicted'])} |" for r in found["batches"]]
    return "\n".join([*out, "", *(f"{part}: {text}" for part, text in found["said"].items() if text)])


def main(argv=None):
    parts = {"weights": lambda args: ways.write_full(args.weights) and 0, "parity": parity, "batches": batches,
             "both": both, "report": report}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="two batch sizes")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    return parts[args.part](args)


if __name__ == "__main__":
    sys.exit(main())
