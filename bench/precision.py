"""What lower precision costs in results: python -m bench.precision. Every third concept feature of the toy, one seed,
from noise, in float32 and bfloat16.

Activation at the end is measured in float32 for both; the judge names the pictures as in toyworld/evaluate.py.
"""
import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from weights.load import load
from config import configure
from ascent import measure
from weights.disk import replacing
from toyworld.evaluate import legibility
from toyworld.judge import load_judge

TOY, PATH = Path("weights/toy"), Path("bench/precision.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=3, help="take every N-th concept feature")
    args = parser.parse_args()
    stored, judge, out = json.loads((TOY / "concepts.json").read_text()), load_judge(TOY), {}
    seen = None
    reference = load(TOY)
    for dtype in (torch.float32, torch.bfloat16):
        model = load(TOY, dtype=dtype)
        config = dataclasses.replace(configure(model.settings), prior="noise", finish=False)
        numbers, results, agree = legibility(model, judge, stored["features"][::args.every], config, stored["timestep"])
        jobs = [r.job for r in results]
        activation = torch.cat([measure(reference, torch.stack([r.latent for r in results[i:i + 32]]),
                                        jobs[i:i + 32])[0]
                                for i in range(0, len(jobs), 32)])
        out[str(dtype)[6:]] = {"features": len(jobs), "activation": activation.mean().item(),
                               "named right": numbers["all"]}
        seen = agree if seen is None else seen == agree
    out["same verdict of the judge"] = f"{int(seen.sum())} of {len(seen)}"
    print(json.dumps(out, indent=1))
    with replacing(PATH) as file:
        file.write(json.dumps(out, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
