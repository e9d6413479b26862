"""Fifty kills at random moments; about two minutes of starting processes."""
import pytest

from tests.test_interrupted import kill_and_resume
from tests.tiny import write_model

pytestmark = pytest.mark.usefixtures("one_thread")      # as the killed processes


def test_fifty_kills(tmp_path):
    at_work, counts = kill_and_resume(write_model(tmp_path / "tiny"), tmp_path, 50, seed=1)
    print(f"{at_work} kills at work, results finished after each run: {counts}")
    assert at_work == 50 and len(set(counts)) > 10
