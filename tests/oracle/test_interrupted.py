"""Fifty kills at random moments, two runs side by side; a minute or two of starting processes."""
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.test_interrupted import kill_and_resume, uninterrupted
from tests.tiny import write_model

pytestmark = pytest.mark.usefixtures("one_thread")      # as the killed processes


def test_fifty_kills(tmp_path):
    weights = write_model(tmp_path / "tiny")
    whole = uninterrupted(weights, tmp_path)
    with ThreadPoolExecutor(2) as pool:                 # they only start processes and wait
        runs = list(pool.map(lambda seed: kill_and_resume(weights, whole, tmp_path / str(seed), 25, seed), (1, 2)))
    for at_work, counts in runs:
        print(f"{at_work} kills at work, results finished after each run: {counts}")
        assert at_work == 25 and len(set(counts)) > 5
