"""A sweep: results of every combination of some settings' values, and all of a feature's on one contact sheet.

    python featviz.py --sweep range_weight=0,0.5,1 jitter_max=0,1,8
    out/<weights>/feature_00012/sweep_range_weight_jitter_max.png

Each combination is a usual result in the folder of its settings (files.py), so a sweep that was stopped goes on where
it was, and one that is widened makes what is new. The last setting runs across the sheet; the others, and time step and
seed where there are several, run down. Under each picture are its activation and its verdict.
"""
import argparse
import dataclasses
import difflib
import itertools
import json

from config import SETTINGS, moment, scale

LABELS = 1.25               # tiles across for the names and values to the left of a row
SWITCH = {"on": True, "off": False}


# --- flags -> settings ------------------------------------------------------------------------------------------------

def axis(text):
    """A flag's type: "range_weight=0,0.5" -> ("range_weight", [0.0, 0.5])."""
    given, _, values = text.partition("=")
    name = given.removeprefix("--").replace("-", "_")
    if name not in SETTINGS:
        near = ", ".join(difflib.get_close_matches(name, SETTINGS, n=3, cutoff=0.0))
        raise argparse.ArgumentTypeError(f"{given!r} is no setting; expected NAME=VALUE,VALUE, nearest: {near}")
    return name, list(dict.fromkeys(typed(name, value) for value in values.split(",")))


def typed(name, text):
    """A setting's value as people type it; ArgumentTypeError for what is none. Ranges are config.check_config's."""
    kind, choices = SETTINGS[name].type, SETTINGS[name].metadata["choices"]
    words = choices or (tuple(SWITCH) if kind is bool else None)
    try:
        if words and text not in words:
            raise ValueError
        return SWITCH[text] if kind is bool else kind(text)
    except ValueError:
        names = {int: "whole numbers", float: "numbers", scale: "numbers or auto", moment: "time steps or auto"}
        wanted = ", ".join(words) if words else names[kind]
        raise argparse.ArgumentTypeError(f"{name} takes {wanted}, separated by commas, got {text!r}") from None


def swept(config, axes, given=()):
    """The configs of all combinations of axes [(name, values)], the last changing fastest; no axes: the config alone.

    ValueError for a setting that is swept twice, or that is also in `given`.
    """
    names = [name for name, _ in axes]
    if twice := [name for name in names if names.count(name) > 1 or name in given]:
        raise ValueError(f"--sweep {twice[0]}: this setting is given twice; give all of its values in one place")
    return [dataclasses.replace(config, **dict(zip(names, values)))
            for values in itertools.product(*(values for _, values in axes))]


# --- results -> sheets ------------------------------------------------------------------------------------------------

def write_sweeps(out, recipes, axes):
    """A sheet for each feature among the recipes of finished results; returns their paths. No axes: none."""
    from pages.files import path_of
    folders = {}
    for recipe in recipes if axes else ():
        folders.setdefault(path_of(out, recipe).parent.parent, []).append(recipe)
    return [write_sweep(folder, {path_of(out, recipe): recipe for recipe in found}, [name for name, _ in axes])
            for folder, found in folders.items()]


def write_sweep(folder, recipes, names):
    """folder/sweep_<names>.png of results {path without suffix: recipe}; returns its path."""
    from PIL import Image

    from pages.sheet import TILE, Sheet
    from weights.disk import alone, replacing
    settings = {path: recipe["job"] | recipe["config"] for path, recipe in recipes.items()}
    values = {name: list(dict.fromkeys(s[name] for s in settings.values())) for name in ("timestep", "seed", *names)}
    *down, across = [name for name in ("timestep", "seed") if len(values[name]) > 1] + names
    rows, columns = list(itertools.product(*(values[name] for name in down))), values[across]
    shown = {path: pictures(path) for path in recipes}
    each = max(len(found) for found in shown.values())          # pictures side by side of one combination

    sheet = Sheet(TILE, LABELS + each * len(columns), len(rows))
    sheet.write(sheet.gap, sheet.gap, title(folder, next(iter(recipes.values())), values),
                sheet.image.width - 2 * sheet.gap, size=2 * sheet.size)
    for row, own in enumerate(rows):
        label(sheet, row, across, zip(down, own))
        for column, value in enumerate(columns):
            sheet.heading(row, LABELS + each * column, each, word(value))
    for path, found in shown.items():
        s = settings[path]
        row, column = rows.index(tuple(s[name] for name in down)), columns.index(s[across])
        for k, (picture, *captions) in enumerate(found):
            with Image.open(picture) as image:
                sheet.tile(row, LABELS + each * column + k, image, *captions)

    path = folder / f"sweep_{'_'.join(names)}.png"
    with alone(folder), replacing(path) as file:
        sheet.image.save(file, format="PNG", dpi=(150, 150))
    return path


def pictures(path):
    """[(path of a picture, its captions)] of a result: of the ascent, and of the finish where there is one."""
    from pages.read import short
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    found = [(".png", "ascent", record)]
    if record["finished"]:
        found.append((".finished.png", "finished", record["finished"]))
    return [(path.with_suffix(suffix), f"{short(made['scores']['activation'])}: {made['verdict']}", name)
            for suffix, name, made in found]


def label(sheet, row, across, values):
    """To the left of a row: the name of what runs across, and the names and values of what runs down."""
    sheet.heading(row, 0, LABELS, f"{across}:")
    y = sheet.top + row * sheet.pitch + sheet.line * 2
    for name, value in values:
        for text, color in ((f"{name}:", "#555555"), (word(value), "black")):
            sheet.write(sheet.left(0), y, text, sheet.left(LABELS) - sheet.left(0) - sheet.gap, color)
            y += sheet.line


def title(folder, recipe, values):
    """The feature's name, and time step and seed where there is one of each."""
    words = {"timestep": "time step", "seed": "seed"}
    single = [f"{words[name]} {values[name][0]}" for name in words if len(values[name]) == 1]
    return ", ".join([f"{folder.name.replace('_', ' ')} of {recipe['weights']}", *single])


def word(value):
    """A setting's value to read."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
