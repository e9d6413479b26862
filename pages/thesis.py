"""The page of the thesis' five features, laid out like its table: feature and word, an image from its prompt, pictures.

    python featviz.py --thesis      makes all of it and writes out/<weights>/thesis/index.html

Everything is read from disk: feature_*.json and their images in the folder (activity/thesis.py), and the results that
these records name, which lie beside the folder as those of any run (files.py).
"""
import json
from pathlib import Path

from pages.feature import embed
from pages.read import attempt, best, read_activity, read_legibility, read_results, short
from pages.web import document, escape, figure, img
from pages.words import reached, reads, told
from weights.disk import alone, replacing

LEAD = ("Left: what the model draws from a prompt. Right: what gradient ascent, from several seeds, makes of noise or "
        "of a rough picture to excite the feature, without any prompt. Where there are two, the second is the first, "
        "redrawn by the model while the feature pulls.")
READING = ("The activation of an image is the mean over all places at the hook point, at the sampling step at which it "
           "is largest; rank 1 means that no other feature is more active there. That of a visualisation is a mean "
           "over four fresh noises at its own time step, so the two are not on one scale.")
FOOTER = ("<footer><p>Made by <code>python featviz.py --thesis --weights {folder}</code>; nobody chose the pictures, "
          "all seeds of the time step that served best are here. Table and method: Szokalski and Modrzejewski, Deep "
          "Dreams Are Made of This, arXiv 2605.08218.</p></footer>")
NUMBERS = ("timestep", "activation", "rank", "features")        # of the activity in the image


def read_row(path):
    """One feature's record, checked as far as it is shown; raises for what is none."""
    row = json.loads(path.read_text(encoding="utf-8"))
    if row["prompt"]:
        row["activity"] = {name: float(row["activity"][name]) for name in NUMBERS}
    return row | {"feature": int(row["feature"]), "results": [str(name) for name in row["results"]], "path": path}


def write_thesis(folder, order=()):
    """folder/index.html of the records there; returns its path. order: feature numbers, these first."""
    folder = Path(folder)
    rows = [row for path in sorted(folder.glob("feature_*.json")) if (row := attempt(read_row, path))]
    if not rows:
        raise ValueError(f"{folder}: holds no record of a feature; make them with python featviz.py --thesis")
    place = {number: i for i, number in enumerate(order)}
    rows.sort(key=lambda row: (place.get(row["feature"], len(place)), row["feature"]))
    notes = dict.fromkeys(row["note"] for row in rows if row["note"])
    weights = rows[0]["weights"]
    body = [f'<header><p class="soft">{escape(weights)}</p><h1>{len(rows)} features, laid out as in the thesis</h1>'
            f'<p class="lead">{escape(LEAD)}</p></header>',
            *(f"<aside><p>{escape(note)}</p></aside>" for note in notes),
            *(section(row, folder) for row in rows), f"<p>{escape(READING)}</p>",
            FOOTER.format(folder=escape(f"weights/{weights}"))]
    with alone(folder), replacing(folder / "index.html") as file:
        file.write(document(f"The thesis' features in {weights}", "\n".join(body), "thesis").encode("utf-8"))
    return folder / "index.html"


def section(row, folder):
    """A feature's row of the table."""
    named = {(folder / name).resolve() for name in row["results"]}
    home = (folder / row["results"][0]).resolve().parent.parent if row["results"] else folder
    everything = read_results(home)
    found = [r for r in everything if r.path.resolve().with_suffix("") in named]
    activity, name = read_activity(home), f"{home.name}/index.html"
    link = f'<p><a href="../{escape(name)}">all that is known of it</a></p>' if (folder.parent / name).exists() else ""
    says = reads(read_legibility(home, everything).get(best(found, activity).folder, {})) if found else ""
    return (f'<section id="f{row["feature"]}"><header><h2>Feature {row["feature"]}: <b>{escape(row["word"])}</b></h2>'
            f"{f'<p>{escape(says)}</p>' if says else ''}{link}</header><div>{drawn(row, found, activity)}</div>"
            f"<div>{made(found, activity)}</div></section>")


def drawn(row, found, activity):
    """The image from the prompt; where the thesis has no prompt, the strongest image of the capture."""
    if row["prompt"]:
        a = row["activity"]
        return figure(img(embed(row["path"].with_suffix(".png")), f"Drawn from: {row['prompt']}"), row["prompt"],
                      f"activation {short(a['activation'])}, most at time step {a['timestep']:.0f}: rank "
                      f"{a['rank']:.0f} of {a['features']:.0f}")
    t = best(found, activity).t if found else None
    seen = [e for e in (activity["examples"].get(t, []) if activity else ()) if e["file"]]
    if not seen:
        return "<p>There is no prompt for it.</p>"
    return figure(img(embed(seen[0]["file"]), f"Dataset image: {seen[0]['prompt']}"), seen[0]["prompt"],
                  f"There is no prompt for it; of {activity['images']} images this one excites it most at time step "
                  f"{t}: {short(seen[0]['activation'])}")


def made(found, activity):
    """Its pictures of one time step, that of the best; each with what the model made of it."""
    if not found:
        return "<p>No picture was made yet.</p>"
    t = best(found, activity).t
    tiles = ""
    for r in (r for r in found if r.t == t):
        last = r.path.with_suffix(".finished.png")
        pictures = img(embed(r.path), f"What excites {told(r)}")
        pictures += img(embed(last), f"The same, redrawn by the model: {told(r)}") if last.exists() else ""
        tiles += figure(pictures, f"seed {r.seed}: {r.verdict}", reached(r, activity))
    return f'<h3>Time step {t}</h3><div class="seeds">{tiles}</div>'
