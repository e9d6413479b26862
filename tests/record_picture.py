"""Record the picture of tests/test_ascent.py: python -m tests.record_picture. Needed again when weights/toy changes."""
import dataclasses
import json
from pathlib import Path

from PIL import Image

from activity.profile import find_capture
from config import Job, configure
from vae import to_uint8
from visualize import run
from weights.load import load

FOLDER = Path(__file__).parent / "fixtures"


def main():
    model = load("weights/toy")
    model.capture = find_capture(model, "none")
    job = Job("feature", model.settings["feature"], model.settings["timestep"], seed=7)
    config = configure(model.settings, num_steps=6, prior_steps=5, finish=False)
    result, = run(model, [job], config)
    Image.fromarray(to_uint8(result.image)).save(FOLDER / "picture.png")
    record = {"job": dataclasses.asdict(job), "config": dataclasses.asdict(config)}
    (FOLDER / "picture.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
