"""For all tests: threads; what the program remembers between runs (fingerprints.py) stays out of
the user's own cache folder.
"""
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only lose time to threads that wait for one another; and sums round
    differently with another number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
