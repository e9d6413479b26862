"""Search features by word or picture, and measure how well a feature's pictures can be read. CLIP looks at them.

    python -m legibility match "a photo of a tree"          on the dataset examples of a capture; no picture is made
    python -m legibility match tree.png
    python -m legibility measure out/toy/feature_00004      into legibility.json:
        words       which words fit the pictures best?
        agreement   do they look like the feature's own dataset examples, or like those of other features?

The pictures are those that the page shows. Both measures are suggestions: the nearest of bad words is a word, too.
`python weights/fetch.py clip` fetches CLIP ViT-L/14.
"""
import json
import sys
from functools import cache
from itertools import groupby, islice
from pathlib import Path

import torch
from PIL import Image

from activity.analysis import shared_words
from activity.capture import attach, save_tensors
from activity.profile import image_path
from command.flags import Parser, add_model, add_out, guarded
from command.progress import Count, say
from legibility.vision import BATCH, CLIPScorer
from results import read_results, to_json, write
from vae import read_picture
from weights.fetch import choose_weights
from weights.load import file_sha256, load, open_tensors

OTHERS = 100                # random features whose examples the pictures are compared with
PUBLISHED = Path(__file__).resolve().parent.parent / "weights/clip"


def agreement(pictures, own, others):
    """Compare pictures (n, E) with the feature's examples (m, E) and those of other features (M, E) [ours].

        s(x) = mean over pictures p of p . x            how much example x looks like the pictures
        auc  = P(s(own example) > s(another feature's example)), equals count half: 0.5 is chance, 1 the best
    """
    mean = pictures.mean(0)                                                                     # (E,)
    difference = (own @ mean)[:, None] - others @ mean                                          # (m, M)
    return ((difference.sign().double() + 1) / 2).mean().item()


def best_words(pictures, mean, words, embeddings, top=3):
    """Find the `top` words for pictures (n, E), the best first: [(word, score)].

        d = mean over the pictures - `mean`             what sets them apart from the mean example (E,) of many features
        score(w) = d . e_w / |d|                        e_w: the embedding of word w, a row of `embeddings` (W, E)

    Without the subtraction (ours), what all pictures share would be nearest. Cosines: Radford et al., arXiv 2103.00020.
    """
    d = pictures.mean(0) - mean
    scores = embeddings @ (d / d.norm().clamp(min=1e-12))                                       # (W,)
    best = scores.topk(top)
    return [(words[i], score) for i, score in zip(best.indices.tolist(), best.values.tolist())]


def read_words():
    """Read {word: the text that CLIP sees} of words.json."""
    groups = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8")).values()
    return {word: group["text"].format(word) for group in groups for word in group["words"]}


class Legibility:
    """CLIP, and the embeddings of a capture's images: `images` (images, E)."""

    def __init__(self, model, out):
        self.scorer, self.capture = CLIPScorer(PUBLISHED, model.device), model.capture
        self.images = self.embed_examples(Path(out) / model.name / f"{self.capture.folder.name}_clip.safetensors")

    def embed_examples(self, path):
        """Embed all images of the capture and keep them in `path`: on a CPU an image takes a second."""
        made_with = {"clip": file_sha256(self.scorer.weights), "capture": self.capture.sha256}
        if path.exists():
            with open_tensors(path) as file:
                if file.metadata() == made_with:
                    return file.get_tensor("embeddings")
        progress, total, vectors = Count("images seen by CLIP"), self.capture.images, torch.empty(0)
        progress(0, total)
        for numbers in torch.arange(total).split(BATCH):
            pictures = [read_picture(image_path(self.capture.folder, n)) for n in numbers.tolist()]
            vectors = torch.cat([vectors, self.scorer.images(pictures)])
            progress(len(vectors), total)
        save_tensors(path, {"embeddings": vectors}, **made_with)
        return vectors

    @cache
    def words(self):
        """Return the words to choose from and their embeddings (W, E)."""
        words = read_words()
        return [*words], self.scorer.texts([*words.values()])

    def examples(self, kind, n, t):
        """Return the embeddings of the examples of one at t: (m, E)."""
        return self.images[[image for image, _ in self.capture.examples(kind, n, t)]]

    def measure(self, results):
        """Measure the pictures of one time step and settings, one a seed; a direction has no examples of its own."""
        kind, target, t = results[0].kind, results[0].target, results[0].t
        pictures = self.scorer.images([read_picture(r.last.path) for r in results])             # (n, E)
        pool = "channel" if kind == "direction" else kind
        width, generator = self.capture.tables[f"share_{pool}"].shape[1], torch.Generator().manual_seed(0)
        order = torch.randperm(width, generator=generator).tolist()
        found = (self.examples(pool, n, t) for n in order if n != target)
        others = torch.cat([*islice((examples for examples in found if len(examples) > 1), OTHERS)])
        measured = {"words": best_words(pictures, others.mean(0), *self.words())}
        if kind != "direction":
            own, peak = self.examples(kind, target, t), self.capture.highest_peak(kind, target)
            if len(own) < 2 and peak is not None:
                own = self.examples(kind, target, peak)
            if len(own) > 1:
                measured["agreement"] = {"auc": agreement(pictures, own, others)}
        return measured

    def search(self, kind, query):
        """Find the ten features or channels whose examples fit the query (E,) best: [(score, number, peak)].

            s(f) = mean over the dataset examples x of feature f, at its highest peak, of x . query
            score(f) = s(f) - mean over features of s
        """
        found = []
        for n in range(self.capture.tables[f"share_{kind}"].shape[1]):
            peak = self.capture.highest_peak(kind, n)
            if peak is not None and len(examples := self.examples(kind, n, peak)):
                found.append(((examples @ query).mean().item(), n, peak))
        mean = sum(s for s, _, _ in found) / max(len(found), 1)
        return [(s - mean, n, peak) for s, n, peak in sorted(found, key=lambda row: -row[0])[:10]]


def match(model, out, query):
    """Print the features whose label holds the query, and, where CLIP is there or no label does, those whose examples
    fit best. A query that ends like a picture's name is the path of one."""
    kind, capture = "feature" if model.sae else "channel", model.capture
    best = [n for n, label in model.labels.items() if query.lower() in label.lower()]
    for n in best:
        say(f'feature {n} has the label "{model.labels[n]}"')
    if (PUBLISHED / "model.safetensors").exists() or not best:
        measures = Legibility(model, out)
        pictured = Path(query).suffix.lower() in Image.registered_extensions()
        (embedding,) = (measures.scorer.images([read_picture(query)]) if pictured               # (E,)
                        else measures.scorer.texts([query]))
        say(f"{kind:>8} {'score':>7} {'activation':>11}  words of its examples")
        for score, n, peak in measures.search(kind, embedding):
            examples = capture.examples(kind, n, peak)
            words = shared_words([capture.prompt(image) for image, _ in examples], capture.prompts)
            say(f"{n:8d} {score:+7.3f} {examples[0][1]:11.4g}  {' '.join(words) or '-'}")
            best.append(n)
    if best:
        say(f"see the first: python featviz.py --weights {model.folder} --hook-point {model.hook_point} --{kind} "
            f"{best[0]}")


def run(args):
    model = load(choose_weights(args.weights, "feature", ["any"]), args.device, args.dtype, args.hook_point)
    attach(model, args.out)
    if args.work == "match":
        return match(model, args.out, " ".join(args.given))
    measures = Legibility(model, args.out)
    for folder in map(Path, args.given):        # {"groups": {"t0600": {"words": ..., "agreement": ...}}}
        groups = groupby(read_results(folder), key=lambda result: result.folder)
        found = {"groups": {name: measures.measure([*results]) for name, results in groups}}
        write(folder / "legibility.json", to_json(found, indent=1))
        say(f"wrote {folder / 'legibility.json'}; python -m pages {folder} shows it on the page")


def main(argv=None):
    parser = Parser(prog="legibility", description=__doc__)
    parser.add_argument("work", choices=("match", "measure"), help="search, or write legibility.json")
    parser.add_argument("given", nargs="+", metavar="QUERY | FOLDER", help="text or picture; or folders of features")
    add_model(parser)
    add_out(parser)
    return guarded("legibility", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
