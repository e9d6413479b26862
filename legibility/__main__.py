"""Search features by word or picture, and measure how well pictures can be read.

    python -m legibility match "a photo of a tree"          on the dataset examples of a capture; no picture is made
    python -m legibility match tree.png
    python -m legibility measure out/toy/feature_00004      words and agreement, into legibility.json
"""
import sys
from pathlib import Path

from PIL import Image

from activity.analysis import shared_words
from activity.capture import attach
from command.flags import Parser, add_model, add_out, guarded
from command.progress import say
from legibility.image_text import PUBLISHED, Legibility
from vae import read_picture
from weights.fetch import choose_weights
from weights.load import load


def match(model, out, query):
    """Print the features whose label holds the query, then those whose dataset examples fit it best. A query that ends
    like a picture's name is the path of one."""
    kind, capture = "feature" if model.sae else "channel", model.capture
    best = [n for n, label in model.labels.items() if query.lower() in label.lower()]
    for n in best:
        say(f'feature {n} has the label "{model.labels[n]}"')
    if (PUBLISHED / "model.safetensors").exists() or not best:
        measures = Legibility(model, out)
        if Path(query).suffix.lower() in Image.registered_extensions():
            (embedding,) = measures.scorer.images([read_picture(query)])                        # (E,)
        else:
            (embedding,) = measures.scorer.texts([query])
        found = measures.search(kind, embedding)
        say(f"{kind:>8} {'score':>7} {'activation':>11}  words of its examples")
        for n, score, peak in found:
            examples = capture.examples(kind, n, peak)
            words = shared_words([capture.prompt(image) for image, _ in examples], capture.prompts)
            say(f"{n:8d} {score:+7.3f} {examples[0][1]:11.4g}  {' '.join(words) or '-'}")
        best += [n for n, _, _ in found]
    if best:
        say(f"see the first: python featviz.py --weights {model.folder} --hook-point {model.hook_point} --{kind} "
            f"{best[0]}")


def run(args):
    model = load(choose_weights(args.weights, "feature", ["any"]), args.device, args.dtype, args.hook_point)
    attach(model, args.out)
    if args.work == "match":
        match(model, args.out, " ".join(args.given))
        return 0
    measures = Legibility(model, args.out)
    for folder in map(Path, args.given):
        measures.write(folder)
        say(f"wrote {folder / 'legibility.json'}; python -m pages {folder} shows it on the page")
    return 0


def main(argv=None):
    parser = Parser(prog="legibility", description=__doc__)
    parser.add_argument("work", choices=("match", "measure"), help="which features fit a text or a picture; or write "
                        "legibility.json, words and agreement of the pictures")
    parser.add_argument("given", nargs="+", metavar="QUERY | FOLDER", help="text or picture; or folders of features")
    add_model(parser)
    add_out(parser)
    return guarded("legibility", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
