"""The page of toyworld/claims.py: tables and figures from claims.json, strips of pictures, the plan for a larger model.

Figures are SVG, drawn by hand: blue and vermilion, which most colour-blind people tell apart (Okabe & Ito, "Color
Universal Design", 2008), and beside colour a shape or a number, so that they can be read in grey print.
"""

from html import escape
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from config import PRESETS, SEEDS, SETTINGS, flag
from toyworld.finishing import insert
from toyworld.trials import work_of
from vae import to_uint8

GOOD, BAD, GREY, FADED = "#0072B2", "#D55E00", "#666666", "#DDDDDD"
FILL = {"holds": GOOD, "does not": BAD, "not decided here": "white"}
SHOWN, EDGE = 6, 96         # features on a strip, the first of the lot; pixels of a picture there
PLAN_TIME = 361             # a time step in the middle, where featviz.py has no better one
STEP_SECONDS = 0.0018       # 790 GFLOP a step at 45% of an H200's 989 TFLOP/s in bfloat16: computed
AUTO_TIMES = 4              # t = 0 and at most three peaks
CAPTURE = 6_100             # images of the thesis' grid of prompts
KNOWN = {"held": "concepts"}                    # which of a large model's features stand in for a group


def number(value, interval=None):
    if value is None:
        return "-"
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")


# --- figures ----------------------------------------------------------------------------------------------------------

def svg(width, height, shapes):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    return "\n".join([head + 'font-family="sans-serif" font-size="13">',
                      f'<rect width="{width}" height="{height}" fill="white"/>', *shapes, "</svg>", ""])


def text(x, y, words, anchor="start", weight="normal", fill="black"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">'
            f'{escape(str(words))}</text>')


def line(x, y, x2, y2, color=GREY, width=1, dash=""):
    return (f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"'
            + (f' stroke-dasharray="{dash}"' if dash else "") + "/>")


def marker(x, y, verdict):
    """A filled circle where it holds, an empty one where it is not decided, a square where it does not; a diamond where
    there is no line."""
    if verdict is None:
        return f'<path d="M{x - 6:.1f} {y:.1f} l6 -6 l6 6 l-6 6 z" fill="{GREY}" stroke="black"/>'
    if verdict == "does not":
        return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{BAD}" stroke="black"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{FILL[verdict]}" stroke="black"/>'


def draw_parts(row):
    """A line a part: number, 95% interval and, dashed, the line that it must be above. Each unit has its own axis."""
    shapes, y, left, width = [], 24, 430, 260
    measured = [p for p in row["parts"] if p["number"] is not None]
    for unit in dict.fromkeys(p["unit"] for p in measured):
        some = [p for p in measured if p["unit"] == unit]
        ends = [v for p in some for v in (*p["interval"], p["above"]) if v is not None]
        low, high = min(ends), max(ends)
        at = lambda v: left + width * (v - low) / ((high - low) or 1)
        for p in some:
            shapes += [text(left - 14, y + 4, p["what"], "end", "bold" if p["deciding"] else "normal"),
                       *(line(at(v), y - 12, at(v), y + 12, dash="4 3") for v in (p["above"],) if v is not None),
                       line(at(p["interval"][0]), y, at(p["interval"][1]), y, "black", 2),
                       marker(at(p["number"]), y, p["verdict"]),
                       text(left + width + 16, y + 4, number(p["number"], p["interval"]))]
            y += 26
        shapes += [line(left, y - 8, left + width, y - 8),
                   *(text(at(v), y + 6, f"{v:.3g}", "middle", fill=GREY) for v in (low, high)),
                   text(left + width + 40, y + 6, unit, fill=GREY)]
        y += 34
    return svg(900, y, shapes)


def draw_curves(row):
    """Shares named right over the x of the figure, with bands of their intervals; series differ in dashes, too."""
    figure, left, top, width, height = row["figure"], 60, 30, 560, 260
    points = [p for series in figure["series"].values() for p in series]
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    at = lambda x, v: (left + width * (x - low) / ((high - low) or 1), top + height * (1 - v))
    shapes = [text(left + width / 2, top + height + 40, figure["x"], "middle"), text(left, 16, "share named right")]
    for v in (0, 0.25, 0.5, 0.75, 1):
        y = at(low, v)[1]
        shapes += [line(left, y, left + width, y, FADED), text(left - 8, y + 4, v, "end")]
    for x in sorted({p[0] for p in points}):
        shapes.append(text(at(x, 0)[0], top + height + 18, x, "middle"))
    ends = {name: at(low, series[-1][1])[1] for name, series in figure["series"].items()}
    for upper, lower in pairwise(sorted(ends, key=ends.get)):           # names do not cover each other
        ends[lower] = max(ends[lower], ends[upper] + 16)
    for (name, series), color, dash in zip(figure["series"].items(), (GOOD, BAD) * 2, ("", "7 4", "2 3", "9 3 2 3")):
        band = [at(p[0], p[3]) for p in series] + [at(p[0], p[2]) for p in reversed(series)]
        path = lambda points: " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes += [f'<polygon points="{path(band)}" fill="{color}" fill-opacity="0.15"/>',
                   f'<polyline points="{path(at(p[0], p[1]) for p in series)}" fill="none" stroke="{color}" '
                   f'stroke-width="2.5" stroke-dasharray="{dash or "none"}"/>',
                   text(left + width + 10, ends[name] + 4, name, fill=color)]
    return svg(left + width + 190, top + height + 54, shapes)


def draw_heat(row):
    """A cell a row and column; good is blue, bad vermilion, each column on its own scale; bold: the 95% interval lies
    on one side of 0."""
    figure, left, wide, high = row["figure"], 200, 66, 28
    shapes, top, columns = [], 64, zip(*figure["cells"])
    most = [max(abs(cell["value"] or 0) for cell in column) or 1 for column in columns]
    for j, (group, name) in enumerate(figure["columns"]):
        first = not j or figure["columns"][j - 1][0] != group
        shapes += [text(left + j * wide, 20, group, weight="bold")] * first
        shapes.append(text(left + (j + 0.5) * wide, top - 12, name, "middle"))
    for i, (name, cells) in enumerate(zip(figure["rows"], figure["cells"])):
        y = top + i * high
        shapes.append(text(left - 10, y + 19, name, "end"))
        for j, cell in enumerate(cells):
            if cell["value"] is None:
                continue
            share, rgb = abs(cell["value"]) / most[j], (GOOD if cell["value"] > 0 else BAD)
            mixed = [round(255 + (int(rgb[k:k + 2], 16) - 255) * 0.75 * share) for k in (1, 3, 5)]
            shapes += [f'<rect x="{left + j * wide}" y="{y}" width="{wide - 2}" height="{high - 2}" '
                       f'fill="rgb({",".join(map(str, mixed))})"/>',
                       text(left + (j + 0.5) * wide, y + 18, f"{cell['value']:+.2f}", "middle",
                            "bold" if cell["clear"] else "normal")]
    return svg(left + len(figure["columns"]) * wide + 10, top + len(figure["rows"]) * high + 12, shapes)


DRAWN = {"curves": draw_curves, "heat": draw_heat}


def write_strip(lab, rows, path):
    """Pictures of the first SHOWN targets and the first seed: a column a setting, a line a target; no choice."""
    labels, top = [label for label, some in rows.items() if some][:12], 34
    if not labels:
        return
    sheet = Image.new("RGB", (len(labels) * (EDGE + 4), top + SHOWN * (EDGE + 4)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for x, label in enumerate(labels):
        words, cut = label, 16
        pen.text((x * (EDGE + 4), 2), f"{words[:cut]}\n{words[cut:2 * cut].strip()}", fill="black", font=font)
        shown = [row for (_, seed), row in rows[label].items() if seed == lab.seeds[0]][:SHOWN]
        for y, image in enumerate(lab.pictures(shown) if shown else ()):
            tile = Image.fromarray(to_uint8(image)).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (x * (EDGE + 4), top + y * (EDGE + 4)))
    sheet.save(path)


def write_pictures(lab, name, rows, docs):
    folder = docs / "pictures/claims"
    folder.mkdir(parents=True, exist_ok=True)
    write_strip(lab, rows, folder / f"{name}.png")


# --- page -------------------------------------------------------------------------------------------------------------

def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|",
                      *("| " + " | ".join(map(str, cells)) + " |" for cells in rows)])


def section(name, row, docs):
    """A claim's part of the page; its figures are drawn on the way."""
    lines = [f"**{row['claim']}** ({row['source']})", "", f"{row['experiment']} Verdict: **{row['verdict']}**.", ""]
    folder = docs / "pictures/claims"
    folder.mkdir(parents=True, exist_ok=True)
    if any(p["number"] is not None for p in row["parts"]):
        (folder / f"{name}_parts.svg").write_text(draw_parts(row), encoding="utf-8")
        lines += [f"![the numbers of this claim with their intervals](pictures/claims/{name}_parts.svg)", ""]
    if row["figure"]:
        (folder / f"{name}.svg").write_text(DRAWN[row["figure"]["kind"]](row), encoding="utf-8")
        lines += [f"![{row['figure']['kind']}](pictures/claims/{name}.svg)", ""]
    if (folder / f"{name}.png").exists():
        lines += [f"![the first features of the lot, none chosen](pictures/claims/{name}.png)", ""]
    head = ("number", "decides", "value", "line; least that counts", "n", "pictures", "McNemar p", "verdict")
    lines += [table(head, (
        (p["what"], "yes" if p["deciding"] else "", f"{number(p['number'], p['interval'])} ({p['unit']})",
         "" if p["above"] is None else f"{p['above']:g}; {p['least']:g}", p["n"] or "-", p["pictures"] or "",
         p.get("p", ""), p["verdict"] or "")
        for p in row["parts"])), ""] if row["parts"] else []
    measures = {"right": "named right", "activation": "activation", "lost": "lost by re-encoding",
                "high": "high frequencies", "odd": "prediction error"}
    lines += [table(("setting", "pictures", *measures.values()), (
        (s["setting"], s["pictures"], *(number(s[m]["number"], s[m]["interval"]) for m in measures))
        for s in row["settings"])), ""] if row["settings"] else []
    return "\n".join([*lines, f"What it does not say: {row['not_said']}", "", f"Elsewhere: {row['elsewhere']}"])


def write_page(numbers, docs):
    """docs/claims.md from claims.json: what stands outside the marks is left as it is."""
    path, claims = docs / "claims.md", numbers["claims"]
    body = path.read_text(encoding="utf-8") if path.exists() else "# Every claim, with a number\n\n"
    head = (f"`python -m toyworld.claims` made all of this on the weights {numbers['weights']}: {numbers['features']} "
            f"of each group by lot, seeds {' '.join(map(str, numbers['seeds']))}. Brackets are 95% intervals over "
            f"features.\n\n{numbers['rule']}\n\nIn figures a filled circle holds, an empty one is not decided, a "
            "square does not hold, a diamond is only told; bold lines decide.\n\n")
    count = lambda row: "; ".join(f"{sum(p['verdict'] == v for p in row['parts'] if p['deciding'])} {v}" for v in FILL)
    several = lambda row: sum(p["deciding"] for p in row["parts"]) > 1
    rows = ((f"[{row['claim']}](#{name})", row["n"],
             count(row) if several(row) else f"{row['what'] or ''}: {number(row['number'], row['interval'])}",
             f"**{row['verdict']}**") for name, row in claims.items())
    body = insert(body, "summary", head + table(("claim", "n", "number", "verdict"), rows))
    for name, row in claims.items():
        if f"<!-- {name} -->" not in body:
            body += f"\n## {name.capitalize()}\n"
        body = insert(body, name, section(name, row, docs))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body, encoding="utf-8")


# --- plan for Stable Diffusion ----------------------------------------------------------------------------------------

HEADER = """\
# The same table on Stable Diffusion: {n} of each group by lot, {seeds} seeds; {pace} s a step of one picture.
# There is no judge: in place of "named right" stand agreement with the feature's own dataset examples in CLIP, and how
# many seeds show one thing (docs/measured.md, "Legibility", says what they are worth).
python -m activity capture --weights weights/sd14                               # {capture:.1f} GPU hours
W=out/sd14/activity/activity.safetensors; python weights/fetch.py clip
lot() {{ python - "$1" {n} <<< 'import random, sys; from safetensors.torch import load_file
t = load_file("'$W'"); top, share = t["max_feature"].amax(0), t["share_feature"].amax(0)
found = {{"concepts": share > 0, "silent": (top > 0) & (share == 0), "dead": top == 0,
         "channels": t["max_channel"][0] < float("inf")}}[sys.argv[1]].nonzero().flatten().tolist()
print(*random.Random(0).sample(found, min(int(sys.argv[2]), len(found))))'; }}"""


def flags(setting):
    """The settings of featviz.py in which this one differs from its preset."""
    config, usual, out = setting.config({}), PRESETS[setting.preset], [f"--preset {setting.preset}"]
    for name in SETTINGS:
        value = getattr(config, name)
        if value != getattr(usual, name):
            switch = flag(name) if value else flag(f"no_{name}")
            out.append(switch if isinstance(value, bool) else f"{flag(name)} {value}")
    return " ".join(out)


def plan(claims, args, pixel=1.0):
    """Commands and GPU hours of [(claim, {label: Setting})] for Stable Diffusion; equal ones are told once.

    pixel  how much more a step costs with the pixels as the leaf
    """
    capture = CAPTURE * 50 * 2 * args.step_seconds / 3600       # guidance runs the UNet twice at each of 50 steps
    seen, total, lines = {}, 0.0, []
    for claim, settings in claims:
        lines += ["", f"# {claim.name}: {claim.sentence}"]
        for label, s in settings.items():
            auto = s.t in (None, "peak", PLAN_TIME)
            kind, group = ("channel", s.group) if s.group == "channels" else ("feature", KNOWN.get(s.group, s.group))
            command = (f"python featviz.py --weights weights/sd14 --{kind} $(lot {group}) --timestep "
                       f"{'auto' if auto else s.t} {flags(s)} --seed $SEEDS --frames 0")
            if (command, s.without) in seen:
                lines.append(f"#   {label}: as {seen[command, s.without]}")
                continue
            seen[command, s.without] = out = f"out/claims/{len(seen):03d}"
            work = work_of(s.config({})) * (pixel if dict(s.changes).get("space") == "pixel" else 1)
            hours = args.features * args.seeds * work * args.step_seconds * (AUTO_TIMES if auto else 1) / 3600
            if s.without:
                lines.append("python -m activity capture --weights weights/sd14 --prompts without_towers.txt --out "
                             f"{out}      # the grid's prompts but those of Towers: {capture:.2f} h")
            lines.append(f"{command} --out {out}      # {label}: {hours:.2f} h")
            total += hours + capture * s.without
    lines += ["", "for d in out/claims/*/sd14; do python -m pages $d --measure --atlas $d; done",
              f"# {total + capture:.1f} GPU hours in all, with the capture"]
    head = HEADER.format(n=args.features, seeds=args.seeds, pace=args.step_seconds, capture=capture)
    return "\n".join([head, f"SEEDS='{' '.join(map(str, SEEDS[:args.seeds]))}'", *lines])
