"""Record the picture of tests/test_ascent.py: python -m tests.record_picture. Needed again when weights/toy changes.
"""
import dataclasses
import json
from pathlib import Path

from PIL import Image

from activity.profile import attach
from weights.load import load
from config import Job, configure
from ascent import visualize
from vae import to_uint8

FOLDER = Path(__file__).parent / "fixtures"


def main():
    model = load("weights/toy")
    model = attach(model, model.folder / "activity")
    job, config = Job(model.settings["feature"], model.settings["timestep"], seed=7), configure(model.settings,
                                                                                                num_steps=6,
                                                                                                prior_steps=5)
    result, = visualize(model, [job], config, batch_size=1)
    Image.fromarray(to_uint8(result.image)).save(FOLDER / "picture.png")
    record = {"job": dataclasses.asdict(job), "config": dataclasses.asdict(config)}
    (FOLDER / "picture.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
