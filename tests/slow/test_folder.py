"""A folder of many results: what a feature costs does not grow with their number. Full size: bench/folder.py."""
import json

import pytest

from bench.folder import NAME, atlas, busy, go_on, jobs, make, pages, size
from pages import files

FEW, MANY = 60, 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{features: folder of their results}."""
    folders = {features: tmp_path_factory.mktemp("made") / "out" for features in (FEW, MANY)}
    for features, out in folders.items():
        make(out, features)
    return folders


def test_the_made_up_results_are_as_many_as_they_say(made):
    """Records, four files beside each, and activity.json; a record is as long as one of Stable Diffusion's."""
    count, _ = size(made[FEW] / NAME)
    assert count == FEW + 5 * len(jobs(FEW)) == FEW * 101
    record = next(made[FEW].glob(f"{NAME}/feature_00007/t0250/seed_*.json"))
    assert 30_000 < record.stat().st_size < 40_000 and json.loads(record.read_text())["recipe"]["job"]["feature"] == 7


@pytest.mark.parametrize("work", [go_on, pages, atlas])
def test_a_feature_costs_no_more_among_many(work, made):
    """Seconds at work, the least of three; the first time is left out, since it imports and makes thumbnails."""
    cost = {}
    for features, out in made.items():
        work(out, features)
        spent = []
        for _ in range(3):
            before = busy()
            work(out, features)
            spent.append(busy() - before)
        cost[features] = min(spent) / min(features, 100 if work is pages else features)
    assert cost[MANY] < 1.5 * cost[FEW]


def test_what_is_finished_is_found_without_reading_pictures(made, monkeypatch):
    """And a result whose record is gone is found to be lacking."""
    monkeypatch.setattr(files, "sha256", lambda data: pytest.fail("a picture was read"))
    go_on(made[FEW], FEW)
    record = next(made[FEW].glob(f"{NAME}/feature_00007/t0250/seed_*.json"))
    text = record.read_text()
    record.unlink()
    with pytest.raises(AssertionError):
        go_on(made[FEW], FEW)
    record.write_text(text)
