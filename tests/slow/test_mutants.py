"""Would the tests notice? Each mutant is the method with one thing wrong; the test file beside it must fail.

    python -m pytest tests/slow/test_mutants.py                 all of them, two at a time: minutes
    python -m pytest tests/slow/test_mutants.py -k blur         some

A mutant is (file, old text, new text). The old text occurs exactly once, so that nobody mutates something else. Copies
of the tree are mutated, never the tree itself; the stored picture helps nobody. A hole that is found later becomes a
mutant here and a test there.
"""
import json
import os
import queue
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT, AT_ONCE = Path(__file__).parents[2], 2
NO_HELP = "test_a_seeded_picture_equals_the_stored_one"
TESTS = {       # file -> which of its tests are run, in the words of -k; those of a whole capture or UNet take too long
    "tests/test_paper.py": "", "tests/test_regularizers.py": "", "tests/test_schedule.py": "not toy_unet",
    "tests/test_networks.py": "sae",
    "tests/test_activity.py": "interpolation or maxima or peaks or strength or concept",
    "tests/test_legibility.py": ""}
PAPER, REGULARIZERS, SCHEDULE, NETWORKS, ACTIVITY, LEGIBILITY = TESTS

MUTANTS = {     # (mutated file, the test file that must fail): [(old text, new text)]
    ("ascent.py", PAPER): [
        # start and a step's random numbers
        ("if not known.keys() >= set(keys)", "if True"),
        (" if key[0] in {job.target for job in jobs}}", "}"),
        ("config.steer_scale * torch", "torch"),
        ("job.target, config.steer_steps)", "job.target)"),
        ("jitter_max + 1, (2,)", "jitter_max + 2, (2,)"),
        ("torch.randint(-config.jitter_max,", "torch.randint(0,"),
        ("whole * shape[-1] / REFERENCE_WIDTH", "whole"),
        ("(2 * turn[0] - 1)", "turn[0]"),
        ("(config.scale_max - 1) * turn[1]", "(config.scale_max - 1) * turn[0]"),
        ("(config.scale_max - 1) * turn[1]", "config.scale_max * turn[1]"),
        ("torch.randn(shape, generator=generator)", "torch.randn(shape, generator=torch.Generator().manual_seed(1))"),
        # what the network sees
        ("reg.transform(z, shift, angle, zoom)", "z"),
        ("reg.transform(z, shift, angle, zoom)", "reg.transform(z, shift, angle, zoom.mean().expand(len(zoom)))"),
        ("add_noise(transformed, eps, t)", "add_noise(z, eps, t)"),
        ("add_noise(transformed, eps, t)", "add_noise(transformed, eps, t[:1].expand(len(t)))"),
        (" if config.noise else transformed", ""),
        # pixels in place of the latent
        ("2 * model.decode(z) - 1", "model.decode(z)"),
        ("model.encode(leaf / 2 + 0.5)", "model.encode(leaf)"),
        ("else leaf / 2 + 0.5", "else leaf"),
        ("moved.clamp(-1, 1)", "moved"),
        ("sigma = reg.pitch(leaf)", "sigma = reg.pitch(z)"),
        # the objective
        ("values.relu() if kind", "values if kind"),
        ("else values).mean(dim=1)", "else values).amax(dim=1)"),
        ("values.mean(dim=1), a) if silent", "values.amax(dim=1), a) if silent"),
        ("(values <= 0).all(", "(values <= 0).any("),
        (' & (kind == "feature")', ""),
        (" if silent_gradient else a", ""),
        ("objective(values, jobs[0].kind, config.silent_gradient)", "objective(values, jobs[0].kind)"),
        ("total_variation_weight * reg.pitch(z) *", "total_variation_weight *"),
        ("config.range_weight * reg", "-config.range_weight * reg"),
        ("range_penalty(z, config.range_threshold)", "range_penalty(z)"),
        ("config.moment_weight * reg", "-config.moment_weight * reg"),
        ("reg.moment_penalty(z)", "reg.moment_penalty(transformed)"),
        ("loss = -climb", "loss = climb"),
        # from the gradient to the new latent
        ("reg.spectral_filter(gradient) if", "gradient if"),
        ("sigma = reg.pitch(leaf) * reg", "sigma = reg"),
        ("smoothing_sigma(index,", "smoothing_sigma(0,"),
        ("reg.blur(filtered, sigma", "reg.blur(gradient, sigma"),
        ("sigma, config.gradient_smoothing_kernel_size", "sigma"),
        ("mean.lerp(g, 1 - config.beta1)", "g"),
        ("config.beta2 * square", "square"),
        ("math.sqrt(1 - config.beta2 ** n)", "math.sqrt(1 - config.beta2)"),
        ("1 - config.beta1 ** n", "1 - config.beta1"),
        ("z * (1 - config.learning_rate * config.weight_decay)", "z * (1 - config.weight_decay)"),
        ("value=-config.learning_rate", "value=config.learning_rate"),
        ("mean, square = moments", "pass"),
        ("leaf = torch.where(alive[:, None, None, None], moved, before)", "leaf = moved"),
        # scores
        ("SCORE_DRAWS = 4", "SCORE_DRAWS = 3"),
        ("SCORE_SEED ^ job.seed", "job.seed"),
        ("OTHERS = 10", "OTHERS = 9"),
        ("z, jobs, noise=False)", "z, jobs)"),
        ("model.encode(images), jobs", "z, jobs"),
        ("(everything[i] > last[i])", "(everything[i] >= last[i])"),
        ("(z[i].abs() > 3)", "(z[i] > 3)"),
        ("argsort(descending=True", "argsort(descending=False"),
        ("for k in order if k != target]", "for k in order]"),
        ("per_position[rows, :, targets]", "per_position[rows, :, 0]"),
        ("job.target, job.timestep)", "job.target, 0)"),
        ("(step.after - step.before).flatten", "step.after.flatten"),
        # verdicts
        ("TOP_RANKS = 10", "TOP_RANKS = 11"),
        ('["rank"] > TOP_RANKS or', '["rank"] > TOP_RANKS and'),
        ("0.5 * max(dataset, 0)", "0.4 * max(dataset, 0)"),
        ("max(dataset, 0)", "dataset"),
        ('< 0.5 * scores["activation"]', '< 0.4 * scores["activation"]'),
        ('<= scores["activation_start"]', '< scores["activation_start"]'),
        # batches
        ("usual * 2 **", "usual *"),
        ("priors)[:len(batch)]", "priors)"),
        ("0 <= job.timestep < len", "0 <= job.timestep <= len"),
    ],
    ("finish.py", PAPER): [
        ("round(top * (steps - i) / steps)", "round(top * (steps - i - 1) / steps)"),
        ("keepdim=True).sqrt()", "keepdim=True)"),
        ("objective(values, jobs[0].kind, config.silent_gradient)", "objective(values, jobs[0].kind)"),
        ("climb.sum(), leaf)", "a.sum(), leaf)"),
        ("reg.spectral_filter(gradient) if", "gradient if"),
        ("e - scale * unit * g", "e + scale * unit * g"),
        ("rms(e) / rms(g), 0)", "rms(e), 0)"),
        ("step(before, pulled, t, t_next)", "step(before, e, t, t_next)"),
        ("[*times[1:], 0]", "[*times[1:], 1]"),
        ("x = torch.where(alive[:, None, None, None], moved, before)", "x = moved"),
        ("len(model.schedule) - 1, config", "len(model.schedule) - 2, config"),
        ("GUIDED_SCALE = 0.5", "GUIDED_SCALE = 0.4"),
        ("FINISH_SEED ^ job.seed", "job.seed"),
        ("ENOUGH = 0.75", "ENOUGH = 0.5"),
        ('column("activation_start"))', 'column("activation"))'),
        (".any(dim=0).all():", ".any(dim=0).any():"),
        ("good.int().argmax(", "good.int().argmin("),
        (".argmax(dim=0))", ".argmin(dim=0))"),
        ("config.num_steps + config.finish *", "config.num_steps +"),
    ],
    ("steering.py", PAPER): [
        ("job.feature for job in jobs", "jobs[0].feature for job in jobs"),
        ("job.channel for job in jobs", "jobs[0].channel for job in jobs"),
        ("s[:, t, None].to", "s[:, 0, None].to"),
        ("SAMPLERS[sampler]", 'SAMPLERS["pndm"]'),
        ("null, guidance), x, steps)", "null, guidance), x, 5)"),
        ("guided(net, context, null, guidance)", "guided(net, context)"),
        ("handle.remove()", "pass"),
    ],
    ("regularizers.py", REGULARIZERS): [
        ("z.shape[-1] / REFERENCE_WIDTH", "1"),
        ("RANGE_LIMIT = 3.0", "RANGE_LIMIT = 2.0"),
        ("z.diff(dim=-2).abs()", "z.diff(dim=-2).square()"),
        ("(z.abs() - limit).relu()", "(z - limit).relu()"),
        ("z.mean((1, 2, 3)).abs() + (", "z.mean((1, 2, 3)) + ("),
        ("std(dim=1) - 1)", "std(dim=1, correction=0) - 1)"),
        ("step / max(steps - 1, 1)", "step / steps"),
        ("KERNEL_SIZE = 9", "KERNEL_SIZE = 7"),
        ("-0.5 * (x / sigma)", "-(x / sigma)"),
        ("kernel = kernel / kernel.sum()", "pass"),
        ('mode="reflect"', 'mode="replicate"'),
        ("fft2(g) / (r + 1)", "fft2(g) / (r + 2)"),
        ("d=1 / g.shape[-1]", "d=1 / g.shape[-2]"),
        ("gain = g.flatten(1).std(dim=1)", "gain = g.std()"),
        ("share * read(at - 1)", "share * read(at + 1)"),
        ("z = roll(z, shift)", "pass"),
        ("a.cos() / zoom, a.sin() / zoom", "a.cos() * zoom, a.sin() * zoom"),
        ("sin * ratio", "sin"),
        ("-sin / ratio", "sin / ratio"),
        ('padding_mode="zeros"', 'padding_mode="border"'),
    ],
    ("schedule.py", SCHEDULE): [
        ("STEPS_OFFSET = 1", "STEPS_OFFSET = 0"),
        ("dtype=torch.float32) ** 2", "dtype=torch.float32)"),
        ("abar.sqrt() * z + (1 - abar).sqrt() * eps", "abar.sqrt() * z + (1 - abar) * eps"),
        ("after.sqrt() * x0", "now.sqrt() * x0"),
        ("(1 - now).sqrt() * eps) / now.sqrt()", "(1 - now).sqrt() * eps) / after.sqrt()"),
        ("e_null + guidance * (e_text", "e_text + guidance * (e_text"),
        ("predict(x, t), t, t - stride", "predict(x, t), t, t - stride - 1"),
        ("times[:2] + times[1:]", "times"),
        ("(e + past[-1]) / 2", "e"),
        ("(3 * past[-1] - past[-2]) / 2", "2 * past[-1] - past[-2]"),
        ("23 * past[-1]", "22 * past[-1]"),
        ("- 9 * past[-4]", "+ 9 * past[-4]"),
    ],
    ("sae.py", NETWORKS): [
        ("self.preprocess(h) - self.b_dec", "self.preprocess(h)"),
        ("self.linear(h).relu()", "self.linear(h)"),
        ("+ self.encoder.bias[feature][:, None]", ""),
        ("pre.topk(self.k, dim=-1)", "pre.topk(self.k + 1, dim=-1)"),
        ("acts @ self.W_dec + self.b_dec", "acts @ self.W_dec"),
        ("h = h - h.mean(dim=-1, keepdim=True)", "pass"),
        ("h / (h.std(", "h / (h.var("),
    ],
    ("sae.py", PAPER): [
        ("self.k * h[..., 0].numel()", "self.k"),
        ("AUX_WEIGHT = 1 / 32", "AUX_WEIGHT = 1 / 16"),
        ("masked_fill(~dead, 0.0)", "masked_fill(dead, 0.0)"),
        ("(h - h.mean(dim=0))", "h"),
        ("self.encoder.weight.copy_(self.W_dec)", "pass"),
        ("self.b_dec.copy_(h.mean(0))", "pass"),
        ("copy_(h[lot] - self.b_dec)", "copy_(h[lot])"),
        ("torch.randint(len(h), ", "torch.randint(1, "),
    ],
    ("legibility.py", LEGIBILITY): [
        ("(smaller + not_larger)", "(2 * smaller)"),
        ("1 + sum(", "sum("),
        ("> mine.mean()", ">= mine.mean()"),
        ("torch.cat(theirs)", "theirs[0]"),
        ("mean = pictures.mean(0) ", "mean = pictures[0] "),
        (".square().sum() - squares)", ".square().sum())"),
        ("squares = a.square().sum()", "squares = a.sum()"),
        ("a @ e", "e.sum(0)"),
        ("(a > 0).sum() < 2", "False"),
        ("(a < 0).any()", "False"),
        ("d = pictures.mean(0) - mean", "d = pictures.mean(0)"),
        ("d / d.norm().clamp(min=1e-12)", "d"),
        ("max(top, 2)", "top"),
        ("found[0][1] - found[1][1]", "found[0][1]"),
    ],
    ("activity/profile.py", ACTIVITY): [
        ("(x[0] <= t) & (t <= x[-1])", "x[0] <= t"),
        ("slope * (t - x[lo])", "slope * (t - x[hi])"),
        (".flip(0).clamp(min=0)", ".flip(0)"),
        ('if when != "all"', 'if when == "constant"'),
        ("(profile(tables, kind, target) > 0)", "(profile(tables, kind, target) >= 0)"),
        ("(y[left] > y[left - 1]) & ", ""),
        ("(left[top] + right[top]) // 2", "left[top]"),
        (">= distance)", "> distance)"),
        ("np.argsort(y[at])[::-1]", "np.argsort(y[at])"),
        ("[:most]", "[:most + 1]"),
        ("sorted({0, *peaks", "sorted({*peaks"),
        ("[:, target] > 0]", "[:, target] >= 0]"),
        ("SHARED = 0.8", "SHARED = 0.5"),
    ],
    ("activity/profile.py", PAPER): [
        ("< 0.5 * len(everything)", "< len(everything)"),
        ("< 0.5 * len(everything)", "<= 0.5 * len(everything)"),
        ("np.interp(np.arange(T + 1), x, y)", "np.interp(np.arange(T + 1), x, y, left=0)"),
    ],
}
EACH = [(file, *texts, tests) for (file, tests), mutants in MUTANTS.items() for texts in mutants]


def copy_tree(to):
    """The tree, .py files copied and all others linked, weights as whole folders."""
    for here, folders, files in os.walk(ROOT):
        inside = to / Path(here).relative_to(ROOT)
        inside.mkdir(parents=True)
        if Path(here) == ROOT / "weights":
            for name in folders:
                (inside / name).symlink_to(Path(here, name))
        folders[:] = [name for name in folders if name not in ("out", "__pycache__") and not name.startswith(".")
                      and not (inside / name).is_symlink()]
        for name in files:
            if name.endswith(".py"):
                shutil.copy(Path(here, name), inside)
            else:
                (inside / name).symlink_to(Path(here, name))
    return to


# Runs pytest in a copy of the tree, each time in a fork: libraries, which nobody mutates, are imported once.
SERVER = """
import json, os, signal, sys
import numpy, PIL.Image, pytest, safetensors.torch, torch
for line in sys.stdin:
    if not (child := os.fork()):
        signal.alarm(500)
        os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        code = pytest.main(json.loads(line))
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, open("output", errors="replace").read()[-2000:]]), flush=True)
"""


def serve(tree):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-c", SERVER], cwd=tree, env=environment, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run(server, tests):
    """The test file in a copy of the tree: pytest's exit code (0 passed, 1 failed) and its last lines."""
    chosen = " and ".join(f"({part})" for part in (TESTS[tests], f"not {NO_HELP}") if part)
    print(json.dumps([tests, "-x", "--tb=line", "-p", "no:cacheprovider", "-k", chosen]), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


def mutated(trees, file, old, new, tests):
    """What `run` says of a mutant, in a tree that nobody else uses meanwhile."""
    tree, server = trees.get()
    try:
        text = (ROOT / file).read_text(encoding="utf-8")
        (tree / file).write_text(text.replace(old, new), encoding="utf-8")
        return run(server, tests)
    finally:
        shutil.copy(ROOT / file, tree / file)
        trees.put((tree, server))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, request):
    """{(a mutant that was selected, or a test file): what will come of it}; AT_ONCE run side by side."""
    trees, servers = queue.Queue(), []
    for i in range(AT_ONCE):
        tree = copy_tree(tmp_path_factory.mktemp("trees") / str(i))
        servers.append(serve(tree))
        trees.put((tree, servers[-1]))
    wanted = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sound = {params["tests"]: pool.submit(mutated, trees, "ascent.py", "", "", params["tests"])    # nothing changes
                 for params in wanted if "tests" in params}
        yield sound | {params["mutant"]: pool.submit(mutated, trees, *params["mutant"])
                       for params in wanted if "mutant" in params}
        pool.shutdown(cancel_futures=True)
    for server in servers:
        server.stdin.close()
        server.wait()


def test_every_old_text_occurs_once():
    """And each mutant is one line that differs from what is there."""
    assert len(set(EACH)) == len(EACH) >= 60
    for file, old, new, _ in EACH:
        assert (ROOT / file).read_text(encoding="utf-8").count(old) == 1, (file, old)
        assert old != new and "\n" not in old + new, (file, old)


@pytest.mark.parametrize("tests", TESTS)
def test_the_tree_itself_passes(outcomes, tests):
    code, output = outcomes[tests].result()
    assert code == 0, output


@pytest.mark.parametrize("mutant", EACH, ids=[f"{file}: {old} -> {new}" for file, old, new, _ in EACH])
def test_a_mutant_is_caught(outcomes, mutant):
    code, output = outcomes[mutant].result()
    assert code == 1, f"{mutant[3]} did not notice: {output}"
