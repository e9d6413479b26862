"""The picture of tests/test_ascent.py: python -m tests.record_picture. Needed again when weights/toy changes."""
from pathlib import Path

from PIL import Image

import featviz
from config import Job, configure
from vae import to_uint8
from visualize import run

PICTURE = Path(__file__).parent / "fixtures/picture.png"


def picture(model):
    """Pixels (H, W, 3) of the toy's own feature after six steps from a steered sample."""
    job = Job("feature", model.settings["feature"], model.settings["timestep"], seed=7)
    result, = run(model, [job], configure(model.settings, num_steps=6, prior_steps=5, finish=False))
    return to_uint8(result.image)


if __name__ == "__main__":
    Image.fromarray(picture(featviz.load("weights/toy", "cpu", out="none"))).save(PICTURE)
