"""What all HTML pages share: one self-contained document, one style, one kind of chart.

Pages open from disk, with no server, no network and no framework. Text that comes from elsewhere goes through `escape`; the policy in
the head lets the browser run the page's own script and nothing that a prompt could smuggle in.
"""
import base64
import hashlib
from html import escape as escape_html
from pathlib import Path

def escape(value):
    """Any value as text that is safe between tags and inside a quoted attribute."""
    return escape_html(str(value), quote=True)


def data_uri(data, kind):
    """Bytes -> an address that holds them; kind: png, jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture(path):
    """The address of a picture file, embedded."""
    path = Path(path)
    return data_uri(path.read_bytes(), "jpeg" if path.suffix in (".jpg", ".jpeg") else "png")


def asset(name):
    """The text of a style sheet or script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def document(title, body, name):
    """A whole page; `body` is HTML already, `title` is text. Its looks are style.css and <name>.css; only <name>.js may run."""
    style, script = asset("style.css") + asset(f"{name}.css"), asset(f"{name}.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data: file: 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def chart(values, label, x_most, width=560, height=160, marks=(), unit="", links=()):
    """One curve as inline SVG, x = 0..x_most evenly, y from the smaller of 0 and the minimum to the maximum; None leaves a gap.

    marks  x positions drawn as vertical lines in the accent colour
    links  where each of the marks leads, if anywhere
    label  what a screen reader says
    """
    known = [v for v in values if v is not None] or [0.0]
    low, high = min(0.0, *known), max(0.0, *known)
    span, left, top, w, h = (high - low) or 1.0, 64, 12, width - 84, height - 36
    at_x = lambda x: left + x * w / x_most
    at_y = lambda v: top + h * (1 - (v - low) / span)
    step, runs, run = x_most / max(len(values) - 1, 1), [], []
    for i, v in enumerate([*values, None]):
        if v is not None:
            run.append(f"{at_x(i * step):.1f},{at_y(v):.1f}")
        elif run:
            runs, run = [*runs, run], []
    lines = "".join(f'<polyline class="curve" points="{" ".join(r)}"/>' for r in runs)
    peaks = [f'<line class="peak" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{top}" y2="{top + h}"/>' for x in marks]
    for i, (x, link) in enumerate(zip(marks, links)):           # a line is too thin to be hit
        peaks[i] = (f'<a href="{escape(link)}" aria-label="{x:g}"><rect x="{at_x(x) - 10:.1f}" y="{top}" width="20" height="{h}" '
                    f'fill="transparent"/>{peaks[i]}</a>')
    lines += "".join(peaks)
    ticks = "".join(f'<text x="{at_x(x):.1f}" y="{top + h + 16}" text-anchor="middle">{x:g}{escape(unit) if x == x_most else ""}</text>'
                    for x in (0, x_most / 4, x_most / 2, 3 * x_most / 4, x_most))
    ticks += "".join(f'<text x="{left - 6}" y="{at_y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>' for v in sorted({low, high}))
    return (f'<svg role="{"group" if links else "img"}" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" style="max-width:100%;height:auto">'
            f'<line class="axis" x1="{left}" x2="{left + w}" y1="{at_y(0):.1f}" y2="{at_y(0):.1f}"/>{lines}{ticks}</svg>')
