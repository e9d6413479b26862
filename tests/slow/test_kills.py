"""Fifty kills at random moments, two runs side by side; jobs one, three and eight at a time."""
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import featviz
from tests.slow.test_interrupted import flags, kill_and_resume, uninterrupted, weights  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")      # as the killed processes


def test_fifty_kills(weights, tmp_path):  # noqa: F811
    run = uninterrupted(weights, tmp_path)
    with ThreadPoolExecutor(2) as pool:                 # they only start processes and wait
        runs = list(pool.map(lambda seed: kill_and_resume(weights, run, tmp_path / str(seed), 25, seed), (1, 2)))
    for at_work, counts in runs:
        print(f"{at_work} kills at work, results finished after each run: {counts}")
        assert at_work == 25 and len(set(counts)) > 5


def test_the_batch_size_splits_work_without_changing_results(weights, tmp_path):  # noqa: F811
    """Latents, scores and curves of 8 jobs, 1, 3 and 8 at a time: the same to 1e-5; files are whole results either way.
    """
    made = {}
    for size in (1, 3, 8):
        out = tmp_path / str(size)
        steered = ("--batch-size", size, "--prior", "steer", "--prior-steps", 4)
        assert featviz.main(flags(weights, out, "--feature", 0, 3, 40, 63, *steered)) == 0
        made[size] = {p.relative_to(out).as_posix(): json.loads(p.read_text()) for p in out.rglob("seed_*.json")}
    assert len(made[1]) == 8 and made[1].keys() == made[3].keys() == made[8].keys()
    for size in (3, 8):
        for name, record in made[size].items():
            expected = made[1][name]
            assert record["recipe"] == expected["recipe"] and record["verdict"] == expected["verdict"]
            assert record["scores"] == pytest.approx(expected["scores"], rel=1e-5, abs=1e-5), name
            for key, curve in record["history"].items():
                assert curve == pytest.approx(expected["history"][key], rel=1e-5, abs=1e-5), (name, key)
