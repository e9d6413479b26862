"""What all HTML pages share: one self-contained document, one style, one kind of figure, table, bars and chart.

Pages open from disk, with no server, no network and no framework. Style sheets and scripts are the files beside this
one, put into a page when it is written. Text that comes from elsewhere goes through `escape`; the policy in the head
lets the browser run the page's own script and nothing that a prompt could smuggle in.
"""
import base64
import hashlib
import html
from functools import cache
from pathlib import Path

DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def escape(value):
    """Any value as text that is safe between tags and inside a quoted attribute."""
    return html.escape(str(value), quote=True)


def data_uri(data, kind):
    """Bytes -> an address that holds them; kind: png, jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture(path):
    """The address of a picture file, embedded."""
    return data_uri(path.read_bytes(), "jpeg" if path.suffix in (".jpg", ".jpeg") else "png")


def asset(name):
    """The text of a style sheet or script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def document(title, body, name):
    """A whole page; `body` is HTML already, `title` is text. It looks as style.css and <name>.css say; only <name>.js
    may run."""
    script = asset(f"{name}.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = ("default-src 'none'; img-src data: file: 'self'; style-src 'unsafe-inline'; "
              f"script-src 'sha256-{digest}'")
    return DOCUMENT.format(policy=policy, title=escape(title), style=asset("style.css") + asset(f"{name}.css"),
                           body=body, script=script)


def img(source, alt):
    return f'<img src="{source}" alt="{escape(alt)}">'


def figure(content, *captions):
    """The first caption stands out; captions are text."""
    first, *rest = captions
    more = "".join("<br>" + escape(c) for c in rest)
    return f"<figure>{content}<figcaption><b>{escape(first)}</b>{more}</figcaption></figure>"


def table(head, rows, label):
    """Rows of texts under a head of texts; without a head each row's first cell names it."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    cells = lambda row: "".join(f'<th scope="row">{escape(v)}</th>' if not head and i == 0 else f"<td>{escape(v)}</td>"
                                for i, v in enumerate(row))
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    return (f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}">'
            f'<table>{f"<tr>{top}</tr>" if head else ""}{body}</table></div>')


def bars(rows):
    """[(name as HTML, number as text, number, whether it is the target's)] as bars to one scale."""
    most = max(value for _, _, value, _ in rows) or 1
    return '<table class="bars">' + "".join(
        f'<tr{" class=target" * target}><th scope="row">{name}</th><td>{text}</td>'
        f'<td><span class="bar" style="width:{100 * max(value, 0) / most:.1f}%"></span></td></tr>'
        for name, text, value, target in rows) + "</table>"


@cache
def across(count, left, width):
    """Where so many points of a curve lie, as they are written: a page has a hundred curves of a few lengths."""
    return [f"{left + i * width / max(count - 1, 1):.1f}," for i in range(count)]


def chart(values, label, x_most, width=560, height=160, marks=(), links=()):
    """One curve as inline SVG, x = 0..x_most evenly, y from min(0, smallest) to the largest; None leaves a gap.

    marks  x positions drawn as vertical lines in the accent colour
    links  where each of the marks leads, if anywhere
    label  what a screen reader says
    """
    known = [v for v in values if v is not None] or [0.0]
    low, high = min(0.0, *known), max(0.0, *known)
    left, top, w, h = 64, 12, width - 84, height - 36
    at_x = lambda x: left + x * w / x_most
    at_y = lambda v: top + h * (1 - (v - low) / ((high - low) or 1.0))
    tall, runs = h / ((high - low) or 1.0), [[]]
    for x, v in zip(across(len(values), left, w), values):
        if v is None:
            runs.append([])
        else:
            runs[-1].append(f"{x}{top + h - (v - low) * tall:.1f}")
    lines = "".join(f'<polyline class="curve" points="{" ".join(run)}"/>' for run in runs if run)
    for i, x in enumerate(marks):
        line = f'<line class="peak" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{top}" y2="{top + h}"/>'
        lines += (f'<a href="{escape(links[i])}" aria-label="{x:g}"><rect x="{at_x(x) - 10:.1f}" y="{top}" width="20" '
                  f'height="{h}" fill="transparent"/>{line}</a>') if links else line      # a line is too thin to be hit
    ticks = "".join(f'<text x="{at_x(x):.1f}" y="{top + h + 16}" text-anchor="middle">{x:g}</text>'
                    for x in (0, x_most / 4, x_most / 2, 3 * x_most / 4, x_most))
    ticks += "".join(f'<text x="{left - 6}" y="{at_y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
                     for v in sorted({low, high}))
    return (f'<svg role="{"group" if links else "img"}" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" style="max-width:100%;height:auto">'
            f'<line class="axis" x1="{left}" x2="{left + w}" y1="{at_y(0):.1f}" y2="{at_y(0):.1f}"/>'
            f"{lines}{ticks}</svg>")
