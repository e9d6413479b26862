"""CLIP looks at pictures: how well a feature's can be read, where nobody knows what they should show (legibility.json).

    agreement   do the pictures look like the feature's own dataset examples, or like those of other features?
    words       which words fit the pictures best?

The pictures are those that the page shows: of each seed the finished one, or the ascent's where there is none. Both
measures compare embeddings, and are suggestions: the nearest of bad words is a word, too. CLIP is in weights/clip:
`python weights/fetch.py clip` puts ViT-L/14 there. Without a tokenizer/ in it, the vocabulary is OpenAI's own.

Sources: words by cosine similarity are from Radford et al., arXiv 2103.00020 (CLIP), the auc is Mann & Whitney's. Ours:
agreement, and the mean that is subtracted.

Axes: n pictures, m examples, E numbers of an embedding, W words.
"""
import json
from functools import cache, cached_property
from itertools import groupby, islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from activity.profile import image_path
from command.progress import Count
from legibility.vision import CLIP, preprocess
from results import read_results, write
from vae import read_picture
from weights.load import WeightsError, build, check_config, file_sha256, read_json, read_tokenizer

WORDS = Path(__file__).with_name("words.txt")
OTHERS = 100                # random features whose examples the pictures are compared with
PUBLISHED = Path(__file__).resolve().parent.parent / "weights/clip"
BATCH = 16                  # pictures or texts at a time


class CLIPScorer:
    """CLIP, frozen, in float32. `images` and `texts` return unit vectors (n, E) on the CPU."""

    def __init__(self, folder, device="cpu"):
        """Load it from `folder`; WeightsError, one line, for what is missing or does not fit."""
        path, self.device, self.weights = folder / "config.json", device, folder / "model.safetensors"
        if not self.weights.exists():
            raise WeightsError(f"{self.weights}: is missing; python weights/fetch.py clip fetches CLIP (1.7 GB)")
        config = read_json(path)
        sizes = {part: check_config("text_encoder", config.get(part, {}), f"{path}: {part}")   # both have these layers
                 for part in ("text_config", "vision_config")}
        sizes["projection_dim"] = config.get("projection_dim", 768)
        edges = {"image_size": 224, "patch_size": 14} | config.get("vision_config", {})        # pixels
        sizes["vision_config"] |= {key: edges[key] for key in ("image_size", "patch_size")}
        self.size = edges["image_size"]
        self.net = build(CLIP, sizes, path, self.weights, device=device)
        self.tokenizer = read_tokenizer(folder / "tokenizer")

    @torch.no_grad()
    def images(self, pictures):
        """Embed n PIL pictures of any size: (n, E)."""
        pixels = torch.stack([preprocess(picture, self.size) for picture in pictures])
        return self.net.embed_images(pixels.to(self.device)).cpu()

    @torch.no_grad()
    def texts(self, strings):
        """Embed n strings: (n, E)."""
        ids = map(self.tokenizer, batches(strings))
        return torch.cat([self.net.embed_texts(some.to(self.device)).cpu() for some in ids])


def batches(items):
    return [items[i:i + BATCH] for i in range(0, len(items), BATCH)]


def agreement(pictures, own, others):
    """Compare pictures (n, E) with the feature's examples (m, E) and those of other features (M, E).

        s(x) = mean over pictures p of p . x            how much example x looks like the pictures
        auc  = P(s(own example) > s(another feature's example)), equals count half: 0.5 is chance, 1 the best

    Several features may show one thing: then none can be perfect.
    """
    mean = pictures.mean(0)                                                                     # (E,)
    difference = (own @ mean)[:, None] - others @ mean                                          # (m, M)
    return ((difference.sign().double() + 1) / 2).mean().item()


def best_words(pictures, mean, words, embeddings, top=3):
    """Find the `top` words for pictures (n, E), the best first: [(word, score)].

        d = mean over the pictures - `mean`             what sets them apart from the mean example (E,) of many features
        score(w) = d . e_w / |d|                        e_w: the embedding of word w, a row of `embeddings` (W, E)

    Without the subtraction, what all pictures have in common ("a picture") would be nearest to all of them.
    """
    d = pictures.mean(0) - mean
    scores = embeddings @ (d / d.norm().clamp(min=1e-12))                                       # (W,)
    best = scores.topk(top)
    return [(words[i], score) for i, score in zip(best.indices.tolist(), best.values.tolist())]


def read_words():
    """Read {word: the text that CLIP sees} from words.txt: a word a line below headings `# group: text with {}`."""
    found = {}
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            template = line.partition(": ")[2]
        else:
            found[line] = template.format(line)
    return found


class Legibility:
    """CLIP and the images of a model's capture, embedded once for many features."""

    def __init__(self, model, out):
        self.scorer, self.capture = CLIPScorer(PUBLISHED, model.device), model.capture
        path = Path(out) / model.name / f"{self.capture.folder.name}_clip.safetensors"
        self.images = self.embed_examples(path)                                                 # (images, E)

    def embed_examples(self, path):
        """Embed all images of the capture and keep them in `path`: CLIP ViT-L/14 on a CPU needs a second an image."""
        made_with = {"clip": file_sha256(self.scorer.weights), "capture": self.capture.sha256}
        if path.exists():
            with safe_open(path, framework="pt") as file:
                if file.metadata() == made_with:
                    return file.get_tensor("embeddings")
        progress, total, vectors = Count("images seen by CLIP"), self.capture.images, []
        progress(0, total)
        for numbers in batches(range(total)):
            vectors.append(self.scorer.images([read_picture(image_path(self.capture.folder, n)) for n in numbers]))
            progress(numbers[-1] + 1, total)
        write(path, save({"embeddings": torch.cat(vectors)}, made_with))
        return torch.cat(vectors)

    @cached_property
    def words(self):
        """The words to choose from and their embeddings (W, E)."""
        words = read_words()
        return [*words], self.scorer.texts([*words.values()])

    def write(self, folder):
        """Write legibility.json into a feature's folder: {"groups": {"t0600": {"words": ..., "agreement": ...}}}."""
        groups = groupby(read_results(folder), key=lambda result: result.folder)
        found = {"groups": {name: self.measure([*results]) for name, results in groups}}
        write(folder / "legibility.json", json.dumps(found, indent=1).encode() + b"\n")

    def measure(self, results):
        """Measure the pictures of one time step and settings, one a seed. A direction has no examples of its own."""
        kind, target, t = results[0].kind, results[0].target, results[0].t
        pictures = self.scorer.images([read_picture(r.last.path) for r in results])             # (n, E)
        of = "channel" if kind == "direction" else kind
        order = torch.randperm(len(self.numbers(of, t)), generator=torch.Generator().manual_seed(0)).tolist()
        found = (self.examples(of, n, t) for n in order if n != target)
        others = torch.cat(list(islice((examples for examples in found if len(examples) > 1), OTHERS)))
        measured = {"words": best_words(pictures, others.mean(0), *self.words)}
        if kind != "direction":
            own, peak = self.examples(kind, target, t), self.capture.highest_peak(kind, target)
            if len(own) < 2 and peak is not None:
                own = self.examples(kind, target, peak)
            if len(own) > 1:
                measured["agreement"] = {"auc": agreement(pictures, own, others)}
        return measured

    @cache
    def numbers(self, kind, t):
        """Image numbers of the dataset examples of all features at t: (F, m), -1 where there is none."""
        return self.capture.stored_examples(kind, t)[0].long()

    def examples(self, kind, n, t):
        """Embeddings of the dataset examples of a feature or channel at t: (m, E)."""
        numbers = self.numbers(kind, t)[n]
        return self.images[numbers[numbers >= 0]]

    def search(self, kind, query, most=10):
        """Find the features or channels whose examples fit the query (E,) best: [(number, score, peak)].

            s(f) = mean over the dataset examples x of feature f, at its highest peak, of x . query
            score(f) = s(f) - mean over features of s

        A feature without a peak, or without an example there, has no score.
        """
        fits, peaks = {}, {}
        for n in range(self.capture.tables[f"share_{kind}"].shape[1]):
            peaks[n] = self.capture.highest_peak(kind, n)
            if peaks[n] is not None and len(examples := self.examples(kind, n, peaks[n])):
                fits[n] = (examples @ query).mean().item()
        mean = sum(fits.values()) / max(len(fits), 1)
        return [(n, fits[n] - mean, peaks[n]) for n in sorted(fits, key=fits.get, reverse=True)[:most]]
