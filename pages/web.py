"""Building blocks of every HTML page: one self-contained document, pictures, tables, bars, charts, terms, sentences.

A page opens from disk: style sheets and scripts, the files beside this one, are copied into it. Text from elsewhere
goes through `escape`. The policy in the head lets the browser run the page's own script and none from a prompt.
"""
import base64
import hashlib
import html
import shlex
import tomllib
from pathlib import Path

from PIL import Image

from config import flag
from results import write
from vae import read_picture, to_file

EDGE = 160          # pixels an edge of a picture that is shown enlarged, each pixel a square


def escape(value):
    """Turn any value into text that is safe between tags and inside a quoted attribute."""
    return html.escape(str(value))


def asset(name):
    """Read a file beside this one; "" where there is none."""
    path = Path(__file__).with_name(name)
    return path.read_text(encoding="utf-8") if path.exists() else ""


TEXTS = tomllib.loads(asset("words.toml"))


def write_document(path, title, body, name):
    """Write a whole page and return its path; `body` is HTML. Style: style.css and <name>.css; script: <name>.js."""
    code = asset(f"{name}.js")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    page = asset("document.html").format(
        title=escape(title), body=body, style=asset("style.css") + asset(f"{name}.css"),
        allowed=f"'sha256-{digest}'" if code else "'none'", script=f"<script>{code}</script>\n" if code else "")
    write(path, page.encode("utf-8"))
    return path


def shrunk(picture, edge):
    """Read a picture, a path or an image of its own, as RGB, made smaller where it is larger than `edge`."""
    image = picture if isinstance(picture, Image.Image) else read_picture(picture)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return image


def embedded(image, alt, kind="PNG", look=""):
    """Embed an image; kind: PNG or JPEG, `look`: attributes."""
    data = base64.b64encode(to_file(image, format=kind, quality=90, subsampling=0)).decode()    # a PNG has neither
    return f'<img {look} src="data:image/{kind.lower()};base64,{data}" alt="{escape(alt)}">'


def sharp(picture, alt, sizes):
    """Embed a picture, a path or an image, at a whole multiple of its size within `sizes` (on a desk, on a phone)."""
    image = shrunk(picture, 2 * max(sizes))
    small = max(image.size) <= EDGE
    wide, narrow = (image.width * max(1, room // image.width) if image.width <= room else room for room in sizes)
    return embedded(image, alt, "PNG" if small else "JPEG", f'class="{"small" * small}" width="{image.width}" '
                    f'height="{image.height}" style="--wide:{wide}px;--narrow:{narrow}px"')


def player(file, home, what):
    """Play a result's WAV file by the browser's own player; "" where there is none. `home`: see feature.pair."""
    return (f'<audio controls preload="metadata" src="{escape(f"{home}{file.parent.name}/{file.name}")}" '
            f'aria-label="{escape(what)}"></audio>') if file.exists() else ""


def figure(content, *lines, look=""):
    """Show content over caption lines; these are HTML. `look`: attributes."""
    return f'<figure {look}>{content}<figcaption>{"<br>".join(filter(None, lines))}</figcaption></figure>'


def term(word, meaning):
    """Show a word whose meaning appears on hover, on tap and on keyboard focus, without a script."""
    return f'<abbr tabindex="0" aria-description="{escape(meaning)}">{escape(word)}</abbr>'


def section(name, title, *parts, folded=True):
    """Build a section with a heading, HTML, that opens on a click; "" where all parts are empty or None."""
    inside, heading, tag = "".join(filter(None, parts)), f"<h2>{title}</h2>", "section"
    if folded:
        heading, tag = f"<summary>{heading}</summary>", "details"
    return f'<{tag} id="{name}">{heading}{inside}</{tag}>' if inside else ""


def table(head, rows, label):
    """Build a table of texts; `label` is read aloud by a screen reader."""
    lines = "<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in head) + "</tr>"
    for row in rows:
        lines += "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}"><table>{lines}</table></div>'


def checks(found):
    """List checks, [(sentence, whether it holds)]."""
    items = {True: '<li class="holds"><b>Holds:</b> {}</li>', False: '<li class="fails"><b>Fails:</b> {}</li>'}
    return "".join(items[holds].format(escape(text)) for text, holds in found)


def bars(rows):
    """Draw [(name, number as text, number, whether it is the target)] as bars to one scale, 0 at the left."""
    most = max((abs(value) for _, _, value, _ in rows), default=0) or 1
    lines = ""
    for name, text, value, target in rows:
        lines += (f'<tr class="{"target" * target}{" below" * (value < 0)}"><th scope="row">{escape(name)}</th>'
                  f'<td>{escape(text)}</td>'
                  f'<td><span class="bar" style="width:{100 * abs(value) / most:.1f}%"></span></td></tr>')
    return f'<table class="bars">{lines}</table>'


def chart(values, label, width=420, marks=()):
    """Draw one curve as inline SVG, at x = 0, 1, 2, ..., y from min(0, smallest) to the largest; None is no point.
    `label` is read aloud by a screen reader; `marks`: x positions of vertical lines; a flat curve gets none."""
    known = [v for v in values if v is not None] or [0.0]
    low, high = min(0.0, *known), max(0.0, *known)
    left, top, w, h, last = 64, 12, width - 84, 104, len(values) - 1
    at_x = lambda x: round(left + x * w / (last or 1), 1)
    at_y = lambda v: round(top + h * (1 - (v - low) / ((high - low) or 1.0)), 1)
    line = " ".join(f"{at_x(i)},{at_y(v)}" for i, v in enumerate(values) if v is not None)
    drawn = f'<polyline class="curve" points="{line}"/>'
    for x in marks if min(known) < max(known) else ():
        drawn += f'<line class="peak" x1="{at_x(x)}" x2="{at_x(x)}" y1="{top}" y2="{top + h}"/>'
    for x in sorted({0, last // 2, last}):
        drawn += f'<text x="{at_x(x)}" y="{top + h + 16}" text-anchor="middle">{x:g}</text>'
    for v in sorted({low, high}):
        drawn += f'<text x="{left - 6}" y="{at_y(v) + 4}" text-anchor="end">{v:.3g}</text>'
    return (f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} 140" '
            f'width="{width}" height="140">'
            f'<line class="axis" x1="{left}" x2="{left + w}" y1="{at_y(0)}" y2="{at_y(0)}"/>{drawn}</svg>')


def short(value):
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def count(n, thing):
    """Format a number of things: "1 file", "1,200 files"."""
    return f"{n:,} {thing}{'s' * (n != 1)}"


def label(r):
    return ", ".join(filter(None, (f"{r.kind} {r.target}", f"time step {r.t}", f"seed {r.seed}", typed(r.recipe))))


def meaning(r):
    return TEXTS["verdicts"][r.verdict.partition(" ")[0]]


def reason(r):
    small = r.verdict == "raised" and r.scores["rank"] <= 10
    said = TEXTS["reasons"].get("small" if small else r.verdict, meaning(r))
    return said.format_map({name: short(score) for name, score in r.scores.items()})


def typed(recipe):
    """Write the settings of a recipe that are not usual as they are typed: "--no-noise --num-steps 3"; "" for none."""
    words = []
    for name, value in recipe["differs"].items():
        values = [] if isinstance(value, bool) else value if isinstance(value, list) else [value]
        words += [flag(f"no_{name}" if value is False else name), *map(str, values)]
    return shlex.join(words)


def command(recipe, times, seeds):
    """Write the command that makes this recipe's result at these time steps and seeds."""
    kind, target = recipe["job"]["kind"], recipe["job"]["target"]
    words = ["python", "featviz.py", "--weights", f"weights/{recipe['weights']}", "--hook-point", recipe["hook_point"]]
    words += [f"--{kind}", *["FILE.safetensors"] * (kind == "direction"), target]
    words += ["--timestep", *times, "--seed", *seeds, "--device", recipe["device"]]
    return f"{shlex.join(map(str, words))} {typed(recipe)}".strip()
