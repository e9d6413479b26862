"""From the command to the first step of the ascent: python bench/start.py

Every start is a process of its own, `python featviz.py` with a clock around its parts. Files lie in the system's cache:
one start of each kind comes before those that count. Medians of wall seconds and, in brackets, of the processor's, all
threads together. `hashes` run in a thread of their own beside the rest, so the processor's seconds given for them are
those of both; what is waited for them is `waiting`. The first time nothing is remembered of the weights; again, hashes
and fit check are. Full size is random numbers, as in speed.py (--folder, 4.5 GB).
"""
import argparse
import functools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("python", "import torch", "other imports", "headers", "reading", "hashes", "waiting", "fit check",
         "to the first step")


def clock():
    """(wall, processor's) seconds of this process; the wall's start is the parent's."""
    return time.time() - float(os.environ["BENCH_BEGAN"]), time.process_time()


def child(flags):
    """One start, told as JSON where the first step would begin."""
    parts = {"python": clock()}

    def add(name, then):
        before = parts.get(name, (0.0, 0.0))
        parts[name] = tuple(b + now - t for b, now, t in zip(before, clock(), then))

    def timed(owner, function, name):
        work = getattr(owner, function)

        @functools.wraps(work)
        def around(*args, **kwargs):
            then = clock()
            try:
                return work(*args, **kwargs)
            finally:
                add(name, then)
        setattr(owner, function, around)

    then = clock()
    import torch  # noqa: F401
    add("import torch", then)
    then = clock()
    import ascent
    import command.device
    import command.told  # noqa: F401
    import finish  # noqa: F401
    from weights import fingerprints, load, preflight
    add("other imports", then)
    timed(load, "find", "headers")
    timed(load.Model, "__init__", "reading")
    timed(fingerprints, "sha256", "hashes")
    timed(load.Model.fingerprints, "func", "waiting")
    timed(preflight, "fit", "fit check")
    start = ascent.start

    def started(*args):
        start(*args)
        print("\n" + json.dumps(parts | {"to the first step": clock()}), flush=True)
        os._exit(0)
    ascent.start = started
    sys.argv = ["featviz.py", *flags]
    runpy.run_path(str(ROOT / "featviz.py"), run_name="__main__")


def run(command, **more):
    """(wall seconds of a process, what it printed)."""
    began = time.time()
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"BENCH_BEGAN": str(began)} | more)
    return time.time() - began, done


def starts(flags, rounds, cache=None):
    """{part: median of (wall, processor's) seconds}. cache: where hashes and fit are remembered; None: nowhere."""
    found = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as empty:
            _, done = run([__file__, "--child", "--out", Path(empty) / "out", *flags],
                          XDG_CACHE_HOME=str(cache or empty))
        if done.returncode:
            sys.exit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(".", end="", file=sys.stderr, flush=True)
    return {name: [statistics.median(one.get(name, (0.0, 0.0))[i] for one in found[1:]) for i in (0, 1)]
            for name in PARTS}


def answers(rounds):
    """{what is asked: median wall seconds} of what needs no model."""
    asked = {"--help": ["--help"], "a flag that does not exist": ["--feature", "1", "--nonsense"],
             "--num-steps 0": ["--num-steps", "0"], "a folder that is not there": ["--weights", "nowhere"]}
    return {name: statistics.median(run(["featviz.py", *flags])[0] for _ in range(rounds))
            for name, flags in asked.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="the toy alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "featviz_bench_sd14",
                        help="model folder of full size; random weights are written there if there is none")
    args = parser.parse_args(argv)
    print("| asked | seconds |\n|---|---|")
    for name, seconds in answers(args.rounds).items():
        print(f"| {name} | {seconds:.2f} |")
    columns = {}
    with tempfile.TemporaryDirectory() as cache:
        columns["toy, first time"] = starts([], args.rounds)
        columns["toy, again"] = starts([], args.rounds, cache)
        if not args.toy:
            from bench.ways import write_full
            full = ["--weights", write_full(args.folder), "--feature", 0, "--seed", 1, "--timestep", 361, "--prior",
                    "noise", "--no-finish"]
            columns["full size, first time"] = starts(full, args.rounds)
            columns["full size, again"] = starts(full, args.rounds, cache)
    print(f"\n| seconds | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for part in PARTS:
        cells = " | ".join("{:.2f} ({:.2f})".format(*column[part]) for column in columns.values())
        print(f"| {part} | {cells} |")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    main()
