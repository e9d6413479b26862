"""For all tests: threads, the tiny model, folders."""
import functools
import shutil

import pytest
import torch

from tests.tiny import write_model
from weights import load as loading

torch.set_num_threads(1)        # networks this small lose time to threads, and sums round differently with more of them


@pytest.fixture(scope="module")
def loaded_once():
    """Where nothing changes a folder that was loaded: loading is most of what a run of two steps costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", functools.cache(loading.load))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The tiny model; modules that need another one have a fixture of this name."""
    return write_model(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may damage of what its module calls whole."""
    return shutil.copytree(whole, tmp_path / whole.name)
