"""More commands that a page shows: they make the same results again."""
import pytest

from tests.test_page import there_and_back

COMMANDS = {
    "other than featviz.json": ["--steer-scale", "500"],        # the preset's own value, which the weights change
    "a preset": ["--preset", "none", "--frames", "0"],
    "no finish": ["--no-finish"],
    "a finish of other strength": ["--finish-scale", "auto", "--finish-from", "500"],
    "another type": ["--dtype", "bfloat16", "--no-finish"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_on_the_page_makes_the_same_recipes(name, weights, tmp_path):
    there_and_back(COMMANDS[name], weights, tmp_path)
