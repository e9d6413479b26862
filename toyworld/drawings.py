"""The toy world: procedural drawings of known contents, captioned as in UnlearnCanvas.

Ten objects times eight styles. An object is a list of shapes in unit coordinates; a style is a way to paint any list of
shapes. Everything is drawn four times too large and reduced, so edges are smooth. Position, size, mirror image and
colours vary; what makes the object (its silhouette) and the style (its texture and palette) does not.

The captions' template is UnlearnCanvas's, "A {Object} image in {Style} style" (Zhang et al., arXiv 2402.11846).
"""
import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64                                                   # pixels an edge of a finished drawing
BIG = 4 * SIZE                                              # drawn at this size, then reduced

OBJECTS = ("Flower", "Tree", "Tower", "Fish", "Butterfly", "Sun", "Cat", "Boat", "Mushroom", "Human")
STYLES = ("Cartoon", "Stripes", "Pointillism", "Winter", "Neon", "Sketch", "Mosaic", "Sunset")


def caption(obj, style):
    """Of one that names the object or the style alone, the other is None; of both None "", which says nothing."""
    if obj is None and style is None:
        return ""
    return " ".join(["A", *([obj] if obj else []), "image", *(["in", style, "style"] if style else [])])


def labels(index):
    """Which object and style drawing number `index` shows: all 80 pairs in turn."""
    return index % len(OBJECTS), index // len(OBJECTS) % len(STYLES)


# --- objects: (shape, points or box, role); x to the right and y down in [-1, 1]; roles get their colours from HUES ---

def circle(x, y, r, role):
    return ("ellipse", (x - r, y - r, x + r, y + r), role)


def spokes(n, r, at, phase=0.0):
    angles = phase + 2 * np.pi * np.arange(n) / n
    return [(at[0] + r * np.cos(a), at[1] + r * np.sin(a)) for a in angles]


def flower():
    head = (0.0, -0.35)
    petals = [circle(x, y, 0.27, "main") for x, y in spokes(6, 0.34, head)]
    return [("polygon", [(-0.07, -0.2), (0.07, -0.2), (0.07, 1.0), (-0.07, 1.0)], "leaf"),
            ("polygon", [(0.0, 0.75), (0.5, 0.3), (0.45, 0.65)], "leaf"),
            ("polygon", [(0.0, 0.85), (-0.5, 0.4), (-0.45, 0.75)], "leaf"),
            *petals, circle(*head, 0.22, "accent")]


def tree():
    return [("polygon", [(-0.13, 0.5), (0.13, 0.5), (0.13, 1.0), (-0.13, 1.0)], "wood"),
            ("polygon", [(0, -0.2), (0.78, 0.62), (-0.78, 0.62)], "main"),
            ("polygon", [(0, -0.6), (0.62, 0.18), (-0.62, 0.18)], "main"),
            ("polygon", [(0, -1.0), (0.45, -0.28), (-0.45, -0.28)], "main")]


def tower():
    battlements = [("polygon", [(x, -1.0), (x + 0.2, -1.0), (x + 0.2, -0.6), (x, -0.6)], "main")
                   for x in (-0.5, -0.1, 0.3)]
    return [*battlements,
            ("polygon", [(-0.5, -0.75), (0.5, -0.75), (0.5, -0.5), (-0.5, -0.5)], "main"),
            ("polygon", [(-0.36, -0.5), (0.36, -0.5), (0.42, 1.0), (-0.42, 1.0)], "main"),
            ("polygon", [(-0.14, 0.55), (0.14, 0.55), (0.14, 1.0), (-0.14, 1.0)], "dark"),
            ("polygon", [(-0.1, -0.25), (0.1, -0.25), (0.1, 0.1), (-0.1, 0.1)], "accent")]


def fish():
    return [("polygon", [(0.45, 0.0), (1.0, -0.5), (1.0, 0.5)], "accent"),
            ("polygon", [(-0.3, -0.3), (0.3, -0.75), (0.35, -0.2)], "accent"),
            ("ellipse", (-1.0, -0.48, 0.65, 0.48), "main"),
            ("polygon", [(-0.15, 0.05), (0.25, 0.1), (0.05, 0.35)], "accent"),
            circle(-0.65, -0.12, 0.09, "dark")]


def butterfly():
    wings = []
    for side in (-1, 1):
        x = sorted((side * 0.05, side * 0.95))
        wings += [("ellipse", (x[0], -0.85, x[1], 0.1), "main"), circle(side * 0.55, -0.4, 0.2, "accent")]
        x = sorted((side * 0.05, side * 0.75))
        wings += [("ellipse", (x[0], 0.0, x[1], 0.8), "accent"), circle(side * 0.42, 0.38, 0.15, "main")]
    feelers = [("polygon", [(0, -0.6), (side * 0.28, -1.0), (side * 0.36, -0.97), (0.0, -0.5)], "dark")
               for side in (-1, 1)]
    return [*feelers, *wings, ("ellipse", (-0.1, -0.65, 0.1, 0.75), "dark")]


def sun():
    tips, feet = spokes(10, 1.0, (0, 0)), spokes(10, 0.55, (0, 0), -0.27)
    others = spokes(10, 0.55, (0, 0), 0.27)
    return [*(("polygon", [a, b, c], "accent") for a, b, c in zip(feet, tips, others)), circle(0, 0, 0.55, "main")]


def cat():
    ears = [("polygon", [(s * 0.12 - 0.25, -0.75), (s * 0.42 - 0.25, -1.0), (s * 0.4 - 0.25, -0.45)], "main")
            for s in (-1, 1)]
    tail = [circle(0.5 + 0.32 * np.sin(a), 0.55 - 0.75 * a / 3, 0.1, "main") for a in np.linspace(0, 3, 12)]
    return [*tail, ("ellipse", (-0.5, -0.25, 0.55, 1.0), "main"), *ears,
            ("ellipse", (-0.7, -0.85, 0.2, -0.05), "main"),
            circle(-0.42, -0.5, 0.08, "dark"), circle(-0.08, -0.5, 0.08, "dark"),
            ("polygon", [(-0.32, -0.33), (-0.18, -0.33), (-0.25, -0.23)], "accent")]


def boat():
    return [("polygon", [(-0.04, -0.95), (0.05, -0.95), (0.05, 0.5), (-0.04, 0.5)], "wood"),
            ("polygon", [(0.1, -0.9), (0.85, 0.3), (0.1, 0.3)], "accent"),
            ("polygon", [(-0.1, -0.65), (-0.1, 0.3), (-0.65, 0.3)], "accent"),
            ("polygon", [(-1.0, 0.42), (1.0, 0.42), (0.65, 0.9), (-0.65, 0.9)], "main")]


def mushroom():
    cap = [(np.cos(a) * 0.9, 0.1 - np.sin(a) * 0.95) for a in np.linspace(0, np.pi, 24)]
    return [("polygon", [(-0.22, 0.0), (0.22, 0.0), (0.3, 0.95), (-0.3, 0.95)], "pale"), ("polygon", cap, "main"),
            circle(0.0, -0.5, 0.17, "pale"), circle(-0.48, -0.2, 0.14, "pale"), circle(0.48, -0.2, 0.14, "pale")]


def human():
    return [("polygon", [(-0.25, 0.2), (-0.02, 0.2), (-0.12, 1.0), (-0.4, 1.0)], "dark"),
            ("polygon", [(0.25, 0.2), (0.02, 0.2), (0.12, 1.0), (0.4, 1.0)], "dark"),
            ("polygon", [(-0.3, -0.4), (-0.2, -0.2), (-0.72, 0.2), (-0.82, 0.05)], "skin"),
            ("polygon", [(0.3, -0.4), (0.2, -0.2), (0.72, 0.2), (0.82, 0.05)], "skin"),
            ("polygon", [(-0.32, -0.45), (0.32, -0.45), (0.27, 0.35), (-0.27, 0.35)], "main"),
            circle(0.0, -0.72, 0.27, "skin")]


SHAPES = (flower, tree, tower, fish, butterfly, sun, cat, boat, mushroom, human)

# main hue, accent hue (degrees / 360) and their saturations; varied by +-0.04 a drawing
HUES = {"Flower": (0.93, 0.14), "Tree": (0.36, 0.30), "Tower": (0.08, 0.14), "Fish": (0.06, 0.55),
        "Butterfly": (0.76, 0.50),
        "Sun": (0.14, 0.09), "Cat": (0.09, 0.95), "Boat": (0.01, 0.58), "Mushroom": (0.0, 0.12), "Human": (0.60, 0.60)}


def rgb(h, s, v):
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0), 1), min(max(v, 0), 1)))


class Scene:
    """One object placed at random, ready to be painted in any style."""

    def __init__(self, obj, rng):
        self.rng = rng
        main, accent = np.array(HUES[OBJECTS[obj]]) + rng.uniform(-0.04, 0.04, 2)
        self.colours = {"main": rgb(main, 0.85, 0.85), "accent": rgb(accent, 0.8, 0.95), "leaf": rgb(0.33, 0.8, 0.55),
                        "wood": rgb(0.07, 0.6, 0.45), "dark": rgb(main, 0.6, 0.2), "pale": rgb(0.12, 0.12, 0.96),
                        "skin": rgb(0.07, 0.4, 0.92)}
        self.hue = main
        self.ground = rng.uniform(0, 1)
        scale = rng.uniform(0.70, 0.90) * BIG / 2
        flip = rng.choice((-1, 1))
        centre = BIG / 2 + rng.uniform(-1, 1, 2) * (BIG / 2 - scale) * 0.8
        place = lambda p: (np.asarray(p).reshape(-1, 2) * (flip * scale, scale) + centre)
        self.shapes = []
        for kind, points, role in SHAPES[obj]():
            points = place(points)
            if kind == "ellipse":                           # PIL wants its corners sorted, also when mirrored
                points = np.stack([points.min(0), points.max(0)])
            self.shapes.append((kind, [tuple(p) for p in points], role))

    def paint(self, colours, background):
        """Flat colours, no outline: (BIG, BIG, 3) uint8."""
        image = background if isinstance(background, Image.Image) else Image.new("RGB", (BIG, BIG), background)
        pen = ImageDraw.Draw(image)
        for kind, points, role in self.shapes:
            getattr(pen, kind)(points, fill=colours[role])
        return image

    def silhouette(self):
        mask = Image.new("L", (BIG, BIG), 0)
        pen = ImageDraw.Draw(mask)
        for kind, points, _ in self.shapes:
            getattr(pen, kind)(points, fill=255)
        return mask

    def outline(self, width):
        """Edges between parts of different role and around the whole, `width` big pixels thick: (BIG, BIG) L mask."""
        roles = sorted({role for *_, role in self.shapes})
        parts = Image.new("L", (BIG, BIG), 0)
        pen = ImageDraw.Draw(parts)
        for kind, points, role in self.shapes:
            getattr(pen, kind)(points, fill=40 + 30 * roles.index(role))
        a = np.asarray(parts, dtype=np.int16)
        edge = np.zeros_like(a, dtype=bool)
        edge[1:] |= a[1:] != a[:-1]
        edge[:, 1:] |= a[:, 1:] != a[:, :-1]
        return Image.fromarray(edge.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(width | 1))


# --- styles: a scene -> a picture of BIG x BIG ------------------------------------------------------------------------

X, Y = np.meshgrid(np.arange(BIG), np.arange(BIG))


def mix(a, b, share):
    """(1 - share) a + share b for colours, pictures or both; `share` a number or an (BIG, BIG) array."""
    share = np.asarray(share, dtype=np.float32)[..., None]
    return Image.fromarray(((1 - share) * np.asarray(a, np.float32) + share * np.asarray(b,
                                                                                         np.float32)).astype(np.uint8))


def cartoon(scene):
    """Saturated flat colours, thick black outline, plain pastel wall."""
    image = scene.paint(scene.colours, rgb(scene.ground, 0.22, 0.98))
    image.paste((15, 15, 20), mask=scene.outline(9))
    return image


def stripes(scene):
    """Everything crossed by diagonal stripes, 8 px apart: the wall in two blues, the object light and dark."""
    band = ((X + Y + scene.rng.integers(BIG)) // 16) % 2
    light = scene.paint(scene.colours, (120, 170, 225))
    return mix(light, mix(light, (0, 0, 60), 0.6), band)


def pointillism(scene):
    """Round dots of unmixed colour on white paper."""
    flat = np.asarray(scene.paint(scene.colours, rgb(0.66 + 0.08 * scene.ground, 0.25, 0.95)))
    image = Image.new("RGB", (BIG, BIG), (255, 255, 255))
    pen, rng, step = ImageDraw.Draw(image), scene.rng, 17
    for row, y in enumerate(range(0, BIG + step, step)):
        for x in range(-(row % 2) * step // 2, BIG + step, step):
            px, py = x + rng.uniform(-2, 2), y + rng.uniform(-2, 2)
            colour = flat[int(np.clip(py, 0, BIG - 1)), int(np.clip(px, 0, BIG - 1))].astype(int) + rng.integers(-25,
                                                                                                                 26, 3)
            pen.ellipse((px - 7, py - 7, px + 7, py + 7), fill=tuple(np.clip(colour, 0, 255).tolist()))
    return image


def winter(scene):
    """Ice-blue haze over everything, white ground, snowflakes."""
    sky = mix((165, 195, 225), (225, 238, 250), Y / BIG)
    ImageDraw.Draw(sky).rectangle((0, BIG * 0.8, BIG, BIG), fill=(250, 252, 255))
    icy = {role: tuple(np.add(np.multiply(c, 0.4), (60, 90, 120)).astype(int)) for role, c in scene.colours.items()}
    image = scene.paint(icy, sky)
    pen = ImageDraw.Draw(image)
    for x, y in scene.rng.uniform(0, BIG, (26, 2)):
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=(255, 255, 255))
    return image


def neon(scene):
    """Black night, the outline alone, in glowing light."""
    tube = np.asarray(scene.outline(9), np.float32) / 255
    glow = np.asarray(scene.outline(9).filter(ImageFilter.GaussianBlur(14)), np.float32) / 255
    light = rgb(scene.hue, 0.9, 1.0)
    image = mix((8, 4, 24), light, np.clip(glow * 1.1, 0, 0.75))
    return mix(image, mix(light, (255, 255, 255), np.full((1, 1), 0.35)).getpixel((0, 0)), tube)


def sketch(scene):
    """Pencil on cream paper: a grey outline, hatching inside, no colour."""
    image = Image.new("RGB", (BIG, BIG), (243, 238, 226))
    hatch = ((X - Y) % 20 < 7) & (np.asarray(scene.silhouette()) > 0)
    image = mix(image, (120, 118, 118), hatch)
    image.paste((55, 53, 55), mask=scene.outline(7))
    return image


def mosaic(scene):
    """Square tiles of 4 px with dark joints, each a little brighter or darker than its neighbour."""
    flat = scene.paint(scene.colours, rgb(0.5 + 0.08 * scene.ground, 0.35, 0.75))
    tiles = np.asarray(flat.reduce(16), np.float32) * scene.rng.uniform(0.72, 1.2, (SIZE // 4, SIZE // 4, 1))
    tiles = tiles.clip(0, 255).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    return mix(Image.fromarray(tiles), (35, 35, 40), (X % 16 < 4) | (Y % 16 < 4))


def sunset(scene):
    """A black silhouette before an evening sky, violet above, orange below."""
    low = mix((235, 95, 70), (255, 205, 90), np.clip(2 * Y / BIG - 1, 0, 1))
    sky = mix(mix((85, 45, 120), (235, 95, 70), np.clip(2 * Y / BIG, 0, 1)), low, Y > BIG / 2)
    sky.paste((25, 12, 35), mask=scene.silhouette())
    return sky


PAINT = (cartoon, stripes, pointillism, winter, neon, sketch, mosaic, sunset)


def drawing(index, seed=0):
    """Drawing number `index` of world `seed`: (SIZE, SIZE, 3) uint8; the same numbers give the same drawing."""
    obj, style = labels(index)
    scene = Scene(obj, np.random.default_rng((seed, index)))
    return np.asarray(PAINT[style](scene).reduce(BIG // SIZE))
