"""CLIP looks at pictures: how well a feature's can be read, where nobody knows what they should show (legibility.json).

    agreement   do the pictures look like the feature's own dataset examples, or like those of other features?
    words       which words fit the pictures best?

The pictures are those that the page shows: of each seed the finished one, or the ascent's where there is none. Both
measures compare embeddings, and are suggestions: the nearest of bad words is a word, too. CLIP is in a folder, the
model's own `clip/`, else weights/clip, where `python weights/fetch.py clip` puts CLIP ViT-L/14:

    folder/config.json              sizes: text_config, vision_config, projection_dim, as the hub's
    folder/model.safetensors        both networks
    folder/tokenizer/               vocab.json, merges.txt; OpenAI's own vocabulary where the folder is missing

Sources: words by cosine similarity are from Radford et al., arXiv 2103.00020 (CLIP), the auc is Mann & Whitney's. Ours:
agreement, and the mean that is subtracted.

Axes: n pictures, m examples, E numbers of an embedding, W words.
"""
import json
from functools import cache, cached_property
from itertools import islice
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
PUBLISHED = Path(__file__).resolve().parent.parent / "weights/clip"     # where fetch.py puts CLIP
BATCH = 16                                                      # pictures or texts at a time
LAYERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES = {"text_config": ("vocab_size", *LAYERS), "vision_config": ("image_size", "patch_size", *LAYERS)}


class CLIPScorer:
    """CLIP, frozen, in float32. `images` and `texts` return unit vectors (n, E) on the CPU."""

    def __init__(self, folder, device="cpu"):
        """Load it from `folder` (of find_clip); WeightsError, one line, for what is missing or does not fit."""
        if folder is None:
            raise WeightsError(f"{PUBLISHED}/model.safetensors: is missing; python weights/fetch.py clip fetches CLIP "
                               "(1.7 GB)")
        self.folder, self.device, path = folder, device, folder / "config.json"
        config = read_json(path)
        try:
            sizes = {part: {key: config[part][key] for key in keys} for part, keys in SIZES.items()}
            sizes["projection_dim"] = config["projection_dim"]
        except (KeyError, TypeError) as e:
            raise WeightsError(f"{path}: lacks {e}; fetch or copy CLIP's own config.json") from e
        for part in SIZES:                                      # both halves have the same layers
            check_config("text_encoder", config[part], f"{path}: {part}")
        self.size = sizes["vision_config"]["image_size"]        # pixels an edge
        self.net = build(CLIP, sizes, path, folder / "model.safetensors", device=device)
        self.tokenizer = read_tokenizer(folder / "tokenizer")

    @torch.no_grad()
    def images(self, pictures):
        """Embed n PIL pictures of any size: (n, E)."""
        pixels = (torch.stack([preprocess(picture, self.size) for picture in some]) for some in batches(pictures))
        return torch.cat([self.net.embed_images(some.to(self.device)).cpu() for some in pixels])

    @torch.no_grad()
    def texts(self, strings):
        """Embed n strings: (n, E)."""
        ids = map(self.tokenizer, batches(strings))
        return torch.cat([self.net.embed_texts(some.to(self.device)).cpu() for some in ids])


def batches(items):
    return [items[i:i + BATCH] for i in range(0, len(items), BATCH)]


def find_clip(model_folder):
    """Return the folder of the CLIP to use with a model, or None where there is none."""
    folders = (Path(model_folder) / "clip", PUBLISHED)
    return next((folder for folder in folders if (folder / "model.safetensors").exists()), None)


def auc(above, below):
    """Estimate P(a > b) + P(a = b) / 2 for a from `above` (n,), b from `below` (m,): 0.5 is chance, 1 the best."""
    difference = above[:, None] - below
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


def agreement(pictures, own, others):
    """Compare pictures (n, E) with the feature's examples (m, E) and other features' [(m_i, E), ...].

        s(x) = mean over pictures p of p . x            how much example x looks like the pictures
        auc  = P(s(own example) > s(another feature's example)), equals count half
        rank = 1 + the number of other features with a larger mean s, `of` so many

    Several features may show one thing: then none can be perfect.
    """
    mean = pictures.mean(0)                                                                     # (E,)
    own, others = own @ mean, [examples @ mean for examples in others]
    rank = 1 + sum(bool(s.mean() > own.mean()) for s in others)
    return {"auc": auc(own, torch.cat(others)), "rank": rank, "of": 1 + len(others)}


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


def read_words(path=WORDS):
    """Read {word: the text that CLIP sees} from a file with a word a line below headings `# group: text with {}`."""
    found, template = {}, "{}"
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
        if line.startswith("#"):
            template = line.partition(": ")[2] or "{}"
        else:
            found[line] = template.format(line)
    return found


class Legibility:
    """CLIP and the images of a model's capture, embedded once for many features."""

    def __init__(self, model, out):
        self.scorer, self.capture = CLIPScorer(find_clip(model.folder), model.device), model.capture
        path = Path(out) / model.name / f"{self.capture.folder.name}_clip.safetensors"
        self.images = self.embed_examples(path)                                                 # (images, E)

    def embed_examples(self, path):
        """Embed all images of the capture and keep them in `path`: CLIP ViT-L/14 on a CPU needs a second an image."""
        clip, total = file_sha256(self.scorer.folder / "model.safetensors"), self.capture.images
        made_with = {"clip": clip, "capture": self.capture.sha256}
        if path.exists():
            with safe_open(path, framework="pt") as file:
                if file.metadata() == made_with:
                    return file.get_tensor("embeddings")
        progress, vectors = Count("images seen by CLIP"), []
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
        groups = {}
        for result in read_results(folder):
            groups.setdefault(result.folder, []).append(result)
        found = {"groups": {name: self.measure(results) for name, results in groups.items()}}
        write(folder / "legibility.json", json.dumps(found, indent=1).encode() + b"\n")

    def measure(self, results):
        """Measure the pictures of one time step and settings, one a seed. A direction has no examples of its own."""
        kind, target, t = results[0].kind, results[0].target, results[0].t
        pictures = self.scorer.images([read_picture(r.last.path) for r in results])             # (n, E)
        of = "channel" if kind == "direction" else kind
        order = torch.randperm(len(self.numbers(of, t)), generator=torch.Generator().manual_seed(0)).tolist()
        found = (self.examples(of, n, t) for n in order if n != target)
        others = list(islice((examples for examples in found if len(examples) > 1), OTHERS))
        if not others:
            return {}
        words = {"words": best_words(pictures, torch.cat(others).mean(0), *self.words)}
        if kind == "direction":
            return words
        own, peak = self.examples(kind, target, t), self.capture.highest_peak(kind, target)
        if len(own) < 2 and peak is not None:
            own = self.examples(kind, target, peak)
        return words | ({"agreement": agreement(pictures, own, others)} if len(own) > 1 else {})

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
