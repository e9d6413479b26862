"""How well a feature's pictures can be read, measured by eyes and written beside them: legibility.json.

    python -m pages out/toy --measure       of results that lie on disk; featviz.py does it at the end of a run where
                                            the weights bring eyes of their own, as the toy does

For each folder of a time step and settings, of the pictures that the page shows, one a seed (the finished one, else the
ascent's):

    agreement   with the feature's own dataset examples at the time step, or where it has not two there at its highest
                peak, against those of OTHERS features by lot (legibility.agreement)
    seeds       sameness of the pictures; and `alike`, how many of them show one thing: those that look, on average,
                more like the other seeds' pictures than like the examples of 99 of 100 other features
    examples    sameness of the own examples, weighted by their activations
    name        the three best words for what sets the pictures apart from the mean of the lot's examples, and the
                margin of the first over the second (legibility.name)

The mean picture is that of the lot's examples: they stand for what the model draws, and so for finished pictures; those
of the ascent have too much in common that no example has. A measure for which something is missing is left out. The
file also says which pictures it speaks of, by their hashes, and what it was made with; pages do not show what speaks of
other pictures (read.read_legibility), nor what proved to say nothing (read.PROVEN).
"""
import json
import sys
from pathlib import Path

import torch

import legibility
from activity import profile
from activity.album import Album, read_image
from config import HOOK_POINT
from pages.files import sha256
from pages.read import PROJECT, attempt, read_activity, read_record, read_results, shown
from weights.disk import WeightsError, alone, replacing
from weights.eyes import find_eyes, open_eyes

OTHERS = 100                # features by lot with which one is compared
SHARE = 0.99                # of them that a picture must be less like than like the other seeds' (ours, by the toy)


def own_eyes(weights):
    """Whether these weights bring eyes of their own. They are small, CLIP ViT-L/14 is not: a run does not wait for it.
    """
    return find_eyes(weights) == Path(weights) / "clip"


def measure_own(weights, device, folders):
    """What a run does for its features: nothing without own eyes; what cannot be is a line, and the pages come anyway.
    """
    try:
        measurer = Measurer(weights, device) if own_eyes(weights) else None
        for folder in folders if measurer else ():
            measurer.write(folder)
    except WeightsError as e:
        print(f"the pictures are not measured: {e}", file=sys.stderr)


class Measurer:
    """The eyes for a model's folder, and what they have seen so far: for a run over many of its features. WeightsError
    where there are none."""

    def __init__(self, weights, device="cpu"):
        self.weights, self.eyes, self.albums = Path(weights), open_eyes(weights, device), {}
        own = self.eyes.source.path.with_name("words.txt")
        words = legibility.vocabulary(own if own.exists() else legibility.WORDS)
        self.words, self.texts = [*words], self.eyes.texts([*words.values()])

    def write(self, folder):
        """folder/legibility.json of a feature's folder; returns its path, None where there is no capture to measure
        by. A file that lies there and fits is kept."""
        folder, found = Path(folder), read_results(folder)
        capture = self.capture_of(folder, found[0].recipe) if found else None
        if capture is None:
            return None
        path, made_with = folder / "legibility.json", self.made_with(capture)
        groups = {name: [r for r in found if r.folder == name] for name in dict.fromkeys(r.folder for r in found)}
        wanted = {name: shown(results) for name, results in groups.items()}
        if attempt(kept, path) != (made_with, wanted):
            activity = read_activity(folder, examples=False)
            measured = {name: {"pictures": wanted[name]} | self.measure(capture, results, activity)
                        for name, results in groups.items()}
            with alone(folder), replacing(path) as file:
                file.write(json.dumps({"made_with": made_with, "groups": measured}, indent=1).encode() + b"\n")
        return path

    def capture_of(self, folder, recipe):
        """The folder of the capture, or probe, of the weights that made a result, in the order in which featviz.py
        looks; None where none has examples."""
        hook = recipe.get("hook_point", HOOK_POINT)
        rooms = (folder.parent / profile.home(hook), self.weights / profile.home(hook),
                 folder.parent / profile.home(hook, "probe"))
        return next((room for room in rooms if (room / "examples.safetensors").exists() and same(room, recipe)), None)

    def made_with(self, capture):
        """What decides the measures beside the pictures: {what: hash}."""
        if capture not in self.albums:
            self.albums[capture] = Album(capture, self.eyes)
        code = Path(legibility.__file__).read_bytes() + Path(__file__).read_bytes()
        return {"eyes": self.eyes.fingerprint, "capture": self.albums[capture].fingerprint,
                "words": sha256("\n".join(self.words).encode()), "code": sha256(code)}

    def measure(self, capture, results, activity):
        """All measures of one folder's results."""
        first, album = results[0], self.albums[capture]
        pictures = self.eyes.images([read_image(r.last.path) for r in results])                 # (n, E)
        lot = album.lot(first.kind, first.t, OTHERS + 1)
        others = [examples for f, examples in lot if f != first.target][:OTHERS]
        peaks = profile.by_height(activity["profile"], activity["peaks"]) if activity else []
        t, own = profile.own_examples(capture, first.kind, first.target, (first.t, *peaks))
        numbers, activations = zip(*own) if own else ((), ())
        out = {}
        if own and others:
            out["agreement"] = legibility.agreement(pictures, album.vectors(numbers), others)
        if len(results) > 1 and others:
            out["seeds"] = {"sameness": legibility.sameness(pictures), "alike": alike(pictures, others),
                            "of": len(results)}
        if sum(a > 0 for a in activations) > 1:
            weights = torch.tensor(activations).clamp(min=0)    # a raw channel's may be negative
            out["examples"] = {"sameness": legibility.sameness(album.vectors(numbers), weights), "of": len(own),
                               "timestep": t}
        if others:
            words, margin = legibility.name(pictures, torch.cat(others).mean(0), self.words, self.texts)
            out["name"] = {"words": words, "margin": margin}
        return out


def find_weights(folder):
    """weights/<name>, where the name is that in a folder's records; None where there is no result."""
    found = next(filter(None, (attempt(read_record, path) for path in folder.glob("t*/seed_*.json"))), None)
    name = found and Path(found.recipe.get("weights", "")).name
    return PROJECT / "weights" / name if name else None


def alike(pictures, others):
    """How many of the pictures (n, E) show one thing: picture p counts where

        mean over the other pictures q of p . q  >  mean over examples x of p . x       for SHARE of `others` (m_i, E)
    """
    n = len(pictures)
    mutual = ((pictures @ pictures.T).sum(1) - 1) / (n - 1)                                     # (n,)
    foreign = torch.stack([(pictures @ examples.T).mean(1) for examples in others], dim=1)      # (n, others)
    return int(((foreign < mutual[:, None]).double().mean(1) >= SHARE).sum())


def same(room, recipe):
    """Whether a capture was made with the weights that a result was made with."""
    made, known = attempt(lambda path: read(path)["recipe"], room / "capture.json") or {}, recipe["fingerprints"]
    return (bool(made) and made.get("hook_point") == recipe.get("hook_point")
            and all(known.get(name) == value for name, value in made.get("fingerprints", {}).items()))


def kept(path):
    """What a file that lies there was made with, and of which pictures it speaks."""
    record = read(path)
    return record["made_with"], {name: group["pictures"] for name, group in record["groups"].items()}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))
