"""Trials for toyworld/claims.py: settings of the method tried on one lot of features, measured, kept, compared.

A `Setting` says what is run; a `Lab` runs it on a group of features or raw channels, each with every seed, and keeps a
row of measures and the picture of each. A batch's file is written in one go, so a run that was killed goes on to the
very same numbers, and trials that share a setting share its pictures.

    activation    of the target, mean over fresh noises [ascent.measure]; reencoded: after decoding and encoding
    lost          1 - reencoded / activation, where activation > 0
    right         the judge names the feature's object, its style, or both
    high          share of the picture's power above half of the Nyquist frequency
    right_start   the same of the picture that the ascent started from
    odd           error of the noise that the model predicts on the picture, encoded again, in units of that on
                  drawings: 1 is as natural
"""
import copy
import dataclasses
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from activity import capture, profile
from ascent import ascend, filled
from config import HOOK_POINT, REFERENCE_WIDTH, Job, configure
from finish import course_length, run_batch, start
from pages.files import method_code
from toyworld import drawings
from toyworld.evaluate import TOP, UNSEEN, feature_activations, find_concepts, right
from toyworld.finishing import shuffled
from toyworld.fit import atomic_save
from toyworld.paired import rounded
from toyworld.train import encode_all, make_drawings, write_json
from unet import UNet
from vae import VAE, to_uint8
from weights.fingerprints import sha256

BATCH, FEWEST = 32, 8       # pictures that are computed together, at most and, with copies, at least
DRAWINGS = 4_800            # unseen ones, among which the strongest of each channel are looked for
ODD_TIMES = (100, 300, 500, 700)
NATURAL = 80                # unseen drawings whose prediction error is the unit of `odd`
ODD_SEED = 2 ** 31          # of that error's noise: no job's seed, whose noise is in the job's own start
COURSE = 20                 # parts of the ascent of which the mean activation is kept
HELD = 5                    # objects that the prompts leave out, by lot, where the capture lacks none: half of ten
LOT = 17                    # seed of that lot and of the groups'
MEASURES = 2                # counted up where a measure of a row changes, so that no older row is taken for one


# --- measures ---------------------------------------------------------------------------------------------------------

def high_frequencies(images):
    """Share of the power of images (B, 3, H, W), each channel's mean taken away, above a quarter of a cycle a pixel:
    (B,)."""
    power = torch.fft.fft2(images - images.mean((2, 3), keepdim=True)).abs().square().sum(1)    # (B, H, W)
    fy, fx = (torch.fft.fftfreq(n, device=images.device) for n in images.shape[-2:])
    above = (fy[:, None] ** 2 + fx[None] ** 2).sqrt() > 0.25
    return (power * above).sum((1, 2)) / power.sum((1, 2)).clamp(min=1e-12)


@torch.no_grad()
def prediction_error(model, z):
    """mean over ODD_TIMES of mean (UNet(x_t, t, "") - eps)^2, the noise eps the same for all rows, another for each t:
    (B, 4, H, W) -> (B,)."""
    noises = torch.randn(len(ODD_TIMES), *z.shape[1:], generator=torch.Generator().manual_seed(ODD_SEED)).to(z)
    context, error = model.embed([""]).expand(len(z), -1, -1), 0
    for t, eps in zip(ODD_TIMES, noises):
        steps, noise = torch.full((len(z),), t, device=z.device), eps.expand_as(z)
        guess = model.unet(model.schedule.add_noise(z, noise, steps).to(model.dtype), steps, context).float()
        error = error + (guess - noise).square().mean((1, 2, 3)) / len(ODD_TIMES)
    return error


def judged(judge, images):
    """[[object, style], ...] of images (B, 3, H, W) of any size, and how sure the judge is of the objects (B,)."""
    o, s, sure, _ = judge.verdict(F.interpolate(images.float(), (drawings.SIZE, drawings.SIZE)))
    return torch.stack([o, s], dim=1).tolist(), sure.tolist()


def mixture(acts, labels):
    """How many labels the TOP strongest images of each unit mix: exp of the entropy of their shares.

    acts (n, F), labels (n,) -> (F,); 1: all alike.
    """
    found = F.one_hot(labels[acts.topk(min(TOP, len(acts)), dim=0).indices]).double().mean(0)   # (F, labels)
    return torch.special.entr(found).sum(-1).exp()


# --- trials -----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Setting:
    """What is run, and on what.

    preset, changes   of config.Config, after what the weights' featviz.json says; without the finish unless changes
                      say so
    group             concepts, channels, silent, dead, held: see `Lab.group`
    t                 a time step; None: where the concepts were found; "peak": the highest of the target's activity, or
                      0 where it has none
    without           whether peaks and strengths are those of a capture that never saw the concepts of `held`
    """
    preset: str = "sae"
    changes: tuple = ()
    group: str = "concepts"
    t: int | str | None = None
    without: bool = False

    def but(self, t=None, group=None, without=False, preset=None, **changes):
        """The same with these things changed."""
        return Setting(preset or self.preset, tuple(sorted((dict(self.changes) | changes).items())),
                       group or self.group, self.t if t is None else t, without or self.without)

    def config(self, own):
        return configure(own, self.preset, **{"finish": False} | dict(self.changes))


BASE = Setting()


def work_of(config):
    """Steps of the ascent that cost as much as a picture's whole course. A step of the finish counts as one and a half,
    a sampling step of a prior, which goes through the whole UNet, as one, a guided one as one and a half, what is
    measured as ten."""
    prior = {"noise": 0, "steer": 1, "guided": 1.5}[config.prior] * config.prior_steps
    return config.num_steps + 1.5 * (course_length(config) - config.num_steps) + prior + 10


class Lab:
    """A model with its capture, a judge, the concepts of concepts.json; what was made with them lies in `home`."""

    def __init__(self, model, judge, stored, features, seeds, home):
        self.model, self.judge, self.t, self.seeds, self.n = model, judge, stored["timestep"], seeds, features
        self.everything = shuffled([c | {"target": c["feature"]} for c in stored["features"]])
        self.base, self.known = home, {}
        made = [profile.fingerprints(model), model.fingerprints["activity.safetensors"], self.t, judge_print(model),
                method_code(), MEASURES]
        self.fingerprint = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
        self.home = home / self.fingerprint

    def lot(self, found):
        """At most n of these, by lot: the first n of one fixed order."""
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(LOT)).tolist()
        return [found[i] for i in order[:self.n]]

    def group(self, name):
        """Targets by lot, at most n: [{"target", "object", "style"}].

        concepts   the concept features of concepts.json
        channels   raw channels of which the same is true
        silent     features that are never among the most active of the capture; dead: that are 0 in all of it
        held       concept features of the objects and styles in `names_held`
        """
        if name == "channels":
            return self.lot([c | {"target": c["feature"]} for c in self.survey["channels"]])
        if name in ("silent", "dead"):
            top, share = (self.model.activity[f"{k}_feature"].amax(0) for k in ("max", "share"))
            found = (top <= 0) if name == "dead" else (top > 0) & (share <= 0)
            known = {c["target"]: c for c in self.everything}
            return self.lot([known.get(f, {"target": f}) for f in found.nonzero().flatten().tolist()])
        held = name == "held" and {*self.names_held}
        return [c for c in self.everything if not held or held & {c["object"], c["style"]}][:self.n]

    def job(self, setting, target, seed):
        kind, t = "channel" if setting.group == "channels" else "feature", setting.t
        if t == "peak":
            t = profile.highest_peak(self.model.activity, kind, target) or 0
        return Job(**{"feature": None, kind: target}, timestep=self.t if t is None else t, seed=seed)

    def folder(self, setting):
        config = json.dumps([dataclasses.asdict(setting.config(self.model.settings)), setting.group == "channels"])
        return self.home / hashlib.sha256(config.encode()).hexdigest()[:12]

    def read(self, setting):
        """{(target, t, seed): row} of what is there; a row knows its file and its place in it."""
        folder = self.folder(setting)
        if folder not in self.known:
            self.known[folder] = {}
            for path in sorted(folder.glob("*.safetensors")):
                self.keep(folder, path)
        return self.known[folder]

    def keep(self, folder, path):
        with safe_open(path, framework="pt") as file:
            for i, row in enumerate(json.loads(file.metadata()["rows"])):
                self.known[folder][row["target"], row["t"], row["seed"]] = row | {"at": (path, i)}

    def missing(self, setting):
        """The jobs that are not there yet."""
        lab = self.without if setting.without else self
        jobs = [lab.job(setting, c["target"], seed) for seed in self.seeds for c in self.group(setting.group)]
        return [job for job in jobs if (job.target, job.timestep, job.seed) not in lab.read(setting)]

    def rows(self, setting, say=lambda done: None):
        """{(target, seed): row} of a setting, made where they are missing; right: of those that have a concept."""
        lab, todo = self.without if setting.without else self, self.missing(setting)
        for i in range(0, len(todo), BATCH):
            lab.make(setting, todo[i:i + BATCH])
            say(len(todo[i:i + BATCH]))
        kept, out = lab.read(setting), {}
        for c in self.group(setting.group):
            for seed in self.seeds:
                job = lab.job(setting, c["target"], seed)
                row = kept[job.target, job.timestep, job.seed]
                named = (("right", "said"), ("right_start", "began"))
                ok = {k: bool(right([c], *([x] for x in row[of]))) for k, of in named} if "object" in c else {}
                out[c["target"], seed] = row | ok
        return out

    def make(self, setting, jobs):
        """A batch's pictures and rows, filled up with copies: kernels of another shape round differently."""
        config, model = setting.config(self.model.settings), self.model
        copies = jobs[-1:] * (filled(len(jobs), BATCH, FEWEST) - len(jobs))
        results = run_batch(model, jobs + copies, config, frames=2)
        last = [r.finished or r for r in results]
        images = torch.stack([r.image for r in last]).to(model.device)
        starts = torch.stack([r.frames[0] for r in results]).to(model.device)
        (said, sure), (began, _), rows = judged(self.judge, images), judged(self.judge, starts), []
        stack = torch.stack([torch.from_numpy(to_uint8(x)).permute(2, 0, 1) for x in images.cpu()])
        high, odd = high_frequencies(images), self.error(stack) / self.natural
        for i, (job, r) in enumerate(zip(jobs, last)):
            a, again = r.scores["activation"], r.scores["activation_reencoded"]
            whole = np.array_split(results[i].history["activation"], min(COURSE, config.num_steps))
            measures = {"activation": a, "activation_start": r.scores["activation_start"], "reencoded": again,
                        "lost": 1 - again / a if a > 0 else None, "high": high[i].item(), "odd": odd[i].item(),
                        "sure": sure[i], "rank": r.scores["rank"]}
            rows.append({"target": job.target, "t": job.timestep, "seed": job.seed, "verdict": r.verdict,
                         "said": said[i], "began": began[i], "course": [rounded(v.mean()) for v in whole],
                         **{k: v if v is None else rounded(v) for k, v in measures.items()}})
        name = hashlib.sha256(json.dumps([[job.target, job.timestep, job.seed] for job in jobs]).encode()).hexdigest()
        path = self.folder(setting) / f"{name[:12]}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_save({"images": stack[:len(jobs)].clone()}, path, {"rows": json.dumps(rows)})
        self.read(setting)
        self.keep(path.parent, path)

    def pictures(self, rows):
        """Images (n, 3, H, W) in [0, 1] of rows."""
        files = {}
        for row in rows:
            path, _ = row["at"]
            files[path] = files[path] if path in files else load_file(path)["images"]
        return torch.stack([files[row["at"][0]][row["at"][1]] for row in rows]).float() / 255

    def error(self, images):
        """The prediction error on uint8 images (B, 3, H, W): (B,)."""
        return prediction_error(self.model, encode_all(self.model.vae, images.to(self.model.device)))

    @cached_property
    def natural(self):
        """The prediction error on unseen drawings."""
        images = np.stack([drawings.drawing(i, UNSEEN) for i in range(NATURAL)])
        return self.error(torch.from_numpy(images).permute(0, 3, 1, 2)).mean()

    @cached_property
    def survey(self):
        """Of unseen drawings, as concepts.json was made: the raw channels that have a concept, and how many objects the
        strongest drawings of each channel and of each feature that fires mix."""
        path = self.home / "survey.json"
        if not path.exists():
            print("looking for the channels that have a concept, a few minutes", file=sys.stderr)
            images = make_drawings(self.base, DRAWINGS, UNSEEN)
            objects, styles = torch.tensor([drawings.labels(i) for i in range(DRAWINGS)]).T
            acts = {kind: feature_activations(self.model, images.to(self.model.device), None, self.t, of).cpu()
                    for kind, of in (("feature", None), ("channel", lambda h: h))}
            lifted = acts["channel"] - acts["channel"].amin(0) + 1e-6       # a channel below 0 is not silent
            mixed = {kind: mixture(a[:, a.amax(0) > a.amin(0)], objects).tolist() for kind, a in acts.items()}
            write_json(path, {"channels": find_concepts(lifted, objects, styles), "mixed": mixed})
        return json.loads(path.read_text())

    def costs(self, pixel):
        """How many times what a step with the pixels as the leaf costs is what one with the latent does. `pixel`: the
        changes that make the difference. Seconds are medians of three steps of a batch, in turns."""
        path = self.home / "costs.json"
        if not path.exists():
            jobs, took = [self.job(BASE, c["target"], self.seeds[0]) for c in self.everything][:FEWEST], [[], []]
            config = [configure(self.model.settings, num_steps=4, prior="noise", **more) for more in ({}, pixel)]
            steps = [iter(ascend(self.model, jobs, c)) for c in config]
            for _ in range(config[0].num_steps):
                for step, seconds in zip(steps, took):
                    began = time.perf_counter()
                    next(step).activation.sum().item()                          # waits for a GPU
                    seconds.append(time.perf_counter() - began)
            latent, pixels = (float(np.median(seconds[1:])) for seconds in took)
            write_json(path, {"operations at the size of SD": full_size_ratio(), "seconds of the toy": pixels / latent})
        return json.loads(path.read_text())

    @cached_property
    def names_held(self):
        """Objects and styles that have concept features and that no prompt of the capture names; where all are named,
        HELD objects by lot."""
        objects, styles = (sorted({c[kind] for c in self.everything} - {None}) for kind in ("object", "style"))
        lacking = {*objects, *styles} - {*" ".join(self.prompts).split()}
        order = torch.randperm(len(objects), generator=torch.Generator().manual_seed(LOT)).tolist()
        return sorted(lacking) or [objects[i] for i in order[:HELD]]

    @property
    def prompts(self):
        made = json.loads((self.model.captured / "capture.json").read_text())
        return made["recipe"]["settings"]["prompts"]

    @property
    def capture_without(self):
        """Settings of a capture like the model's own, but for prompts that name something of `names_held`."""
        prompts = tuple(p for p in self.prompts if not {*p.split()} & {*self.names_held})
        if not prompts:
            raise ValueError(f"{self.model.captured}: every prompt names {' or '.join(self.names_held)}; capture with "
                             "prompts of other objects, too")
        return capture.configure(self.model, prompts=prompts, batch_size=BATCH)

    @property
    def home_without(self):
        """Of that capture and what is made with it: other prompts are another place."""
        prompts = json.dumps(self.capture_without.prompts).encode()
        return self.home / f"without_{hashlib.sha256(prompts).hexdigest()[:12]}"

    @cached_property
    def without(self):
        """The same lab with that capture, which is made where there is none; itself where its own is such a one."""
        settings = self.capture_without
        if len(settings.prompts) == len(self.prompts):
            return self
        home = self.home_without
        print(f"a capture without {' and '.join(self.names_held)}", file=sys.stderr)
        capture.capture(self.model, settings, home / "capture")
        lab = copy.copy(self)
        lab.model, lab.home, lab.known = profile.attach(self.model, home / "capture"), home, {}
        return lab

    def seconds(self, settings):
        """About how long these settings take: three steps of the ascent of a batch are timed, after a first one. An
        image of a capture counts as twice its sampling steps, a drawing of the survey as one step."""
        jobs = [self.job(BASE, c["target"], seed) for seed in self.seeds for c in self.everything][:BATCH]
        config, count = configure(self.model.settings, num_steps=4, prior="noise"), lambda s: self.count(s)
        steps = iter(ascend(self.model, jobs, config, begin=start(self.model, jobs, config)))
        next(steps)
        began, taken = time.time(), len([*steps])
        pace = (time.time() - began) / taken / len(jobs)
        work = sum(work_of(s.config(self.model.settings)) * count(s) for s in dict.fromkeys(settings))
        if any(self.unknown(s) and s.without for s in settings):
            work += 2 * self.capture_without.steps * self.capture_without.images
        return pace * (work + DRAWINGS * any(self.unknown(s) and not s.without for s in settings))

    def unknown(self, setting):
        """Whether what its targets or time steps depend on is not there yet: the survey, or another capture."""
        if setting.without:
            made = (self.home_without / "capture/capture.json").exists()
            return len(self.capture_without.prompts) < len(self.prompts) and not made
        return setting.group == "channels" and not (self.home / "survey.json").exists()

    def count(self, setting):
        """Pictures of a setting that are missing; all of them where what they depend on is not known yet."""
        return self.n * len(self.seeds) if self.unknown(setting) else len(self.missing(setting))


def full_size_ratio():
    """Operations of a step with the pixels as the leaf over those with the latent, counted at the sizes of Stable
    Diffusion 1.x: the encoder's, forward and back, beside the UNet's up to the hook point."""
    with torch.device("meta"):
        unet, vae = UNet().requires_grad_(False), VAE().requires_grad_(False)
        shape = 1, 3, vae.factor * REFERENCE_WIDTH, vae.factor * REFERENCE_WIDTH
        latent, pixels = (torch.empty(*s, requires_grad=True) for s in ((1, 4, *[REFERENCE_WIDTH] * 2), shape))
        t, context, counted = torch.empty(1, dtype=torch.int64), torch.empty(1, 77, 768), []
        for leaf in (latent, pixels):
            with FlopCounterMode(display=False) as counter:
                z = leaf if leaf is latent else vae.encode(leaf)
                unet(z, t, context, until=HOOK_POINT).sum().backward()
            counted.append(counter.get_total_flops())
    return counted[1] / counted[0]


def judge_print(model):
    path = model.folder / "judge/model.safetensors"
    return sha256([path])[path]
