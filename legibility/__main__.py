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
from config import HOOK_POINT
from legibility.image_text import Legibility, find_clip, read_picture
from weights.fetch import choose_weights
from weights.load import load


def embed_query(scorer, query):
    """Embed a text, or the picture at a path: (E,)."""
    path = Path(query)
    if path.is_file():
        return scorer.images([read_picture(path)])[0]
    if not query.strip() or path.suffix.lower() in Image.registered_extensions():
        raise ValueError(f"{query!r} is neither a text nor the path of a picture")
    return scorer.texts([query])[0]


def match(model, out, query):
    """Print the features whose label holds the query, then those whose dataset examples fit it best."""
    kind, capture = "feature" if model.sae else "channel", model.capture
    best = [n for n, label in model.labels.items() if query.strip() and query.lower() in label.lower()]
    for n in best:
        say(f'feature {n} has the label "{model.labels[n]}"')
    if find_clip(model.folder) or not best:
        measures = Legibility(model, out)
        found = measures.search(kind, embed_query(measures.scorer, query))
        say(f"{kind:>8} {'score':>7} {'activation':>11}  words of its examples")
        for n, score, peak in found:
            examples = capture.examples(kind, n, peak)
            words = shared_words([capture.prompt(image) for image, _ in examples], capture.prompts)
            say(f"{n:8d} {score:+7.3f} {examples[0][1]:11.4g}  {' '.join(words) or '-'}")
        best += [n for n, _, _ in found]
    hook = "" if model.hook_point == HOOK_POINT else f" --hook-point {model.hook_point}"
    if best:
        say(f"see the first: python featviz.py --weights {model.folder} --{kind} {best[0]}{hook}")


def measure(model, out, folders):
    """Write legibility.json into the folders of features."""
    measures = Legibility(model, out)
    for home in folders:
        measures.write(home)
        say(f"wrote {home / 'legibility.json'}; python -m pages {home} shows it on the page")


def run(args):
    model = load(choose_weights(args.weights, "feature", ["any"]), args.device, args.dtype, args.hook_point)
    attach(model, args.out)
    args.work(model, args.out, args.given)
    return 0


def main(argv=None):
    parser = Parser(prog="legibility", description=__doc__)
    commands = parser.add_subparsers(required=True)
    matching = commands.add_parser("match", help="which features fit a text or a picture")
    matching.add_argument("given", metavar="QUERY")
    measuring = commands.add_parser("measure", help="write legibility.json: words and agreement of the pictures")
    measuring.add_argument("given", metavar="FOLDER", type=Path, nargs="+")
    for command, work in ((matching, match), (measuring, measure)):
        command.set_defaults(work=work)
        add_model(command)
        add_out(command)
    return guarded("legibility", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
