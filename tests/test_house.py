"""The house: imports run down only, nothing imports a command, the root stays small. Read from the code with `ast`.

A script that holds functions, such as weights/fetch.py, is a library as well, because nothing runs when it is imported;
featviz.py and the __main__ of a room are commands, which only tests and notebooks import.
"""
import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEVELS = (                                      # from the bottom up: files of the root, then rooms
    "config", "regularizers schedule", "unet sae", "clip vae", "steering", "ascent", "finish", "visualize results",
    "command", "weights", "activity", "dictionary", "legibility", "audio", "pages", "featviz", "toyworld", "bench",
    "course")
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names.split()}
ROOMS = sorted({path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"})
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
           for path in sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))])}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name):
    """Every module that a file imports, wherever in it; `from a import b` may mean a or a.b."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def graph():
    """{module: the project's modules that it imports}."""
    return {name: imports(name) & MODULES.keys() - {name} for name in MODULES}


def room(name):
    return name.partition(".")[0]


def test_imports_run_down_between_rooms_and_never_in_a_circle():
    assert {room(name) for name in MODULES} <= LEVEL.keys()
    assert [(name, other) for name, others in graph().items() for other in others
            if room(other) != room(name) and LEVEL[room(other)] >= LEVEL[room(name)]] == []
    TopologicalSorter(graph()).prepare()                        # raises an error where there is a circle


def test_nothing_imports_a_command_or_a_test():
    commands = {name for name in MODULES if name == "featviz" or name.endswith(".__main__")}
    assert [(name, other) for name, others in graph().items() for other in others & commands] == []
    assert [name for name in MODULES if any(room(other) == "tests" for other in imports(name))] == []


def test_nothing_runs_when_a_file_is_imported():
    """But for the search path of scripts that are called by their file's name."""
    for name, tree in TREES.items():
        runs = [node for node in tree.body[1:] if isinstance(node, (ast.Expr, ast.For, ast.While, ast.With))]
        assert all(ast.unparse(node).startswith("sys.path.insert(") for node in runs), name


def test_files_are_few_at_the_root_and_each_says_what_it_is():
    assert len(list(ROOT.glob("*.py"))) <= 13
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []
