"""The house: imports run one way, nothing imports a command, the root stays small. Read from the code with `ast`."""
import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# from the ground up: a file may import what stands before it, and its neighbours in the same room
FLOORS = ("config", "regularizers", "schedule", "sae", "vae", "clip", "unet", "steering", "ascent", "finish",
          "legibility", "weights", "command", "activity", "pages", "featviz", "toyworld", "bench")
ROOMS = ("weights", "activity", "command", "pages", "toyworld", "bench")
ON_TOP = {"activity.__main__", "activity.run", "pages.__main__"}     # commands of a room, and what they do
COMMANDS = {"featviz", "activity.__main__", "pages.__main__", "weights.fetch", "weights.convert", "bench.speed"}


def modules():
    """{module: path} of everything that is not a test."""
    paths = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imports(path, known):
    """The project's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known


def graph():
    known = modules()
    return {name: imports(path, known.keys() - {name}) for name, path in known.items()}


def circle(edges):
    """A list of modules that import one another in turn; empty where there is none."""
    done = set()

    def walk(name, way):
        if name in way:
            return [*way[way.index(name):], name]
        if name in done:
            return []
        for other in sorted(edges[name]):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []
    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def test_no_two_files_import_each_other():
    assert circle(graph()) == []


def test_no_import_runs_upward():
    floor = lambda name: FLOORS.index("featviz" if name in ON_TOP else name.split(".")[0])
    assert [(name, other) for name, others in graph().items() for other in others if floor(other) > floor(name)] == []


def test_nothing_imports_a_command():
    assert [(name, other) for name, others in graph().items() for other in others if other in COMMANDS] == []
    assert [name for name, others in graph().items() if "activity.run" in others] == ["activity.__main__"]
    guarded = {name for name, path in modules().items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    assert {name for name in guarded if name.split(".")[0] not in ("toyworld", "bench")} <= COMMANDS


def test_the_root_is_the_method_and_its_command():
    assert len(list(ROOT.glob("*.py"))) <= 12


def test_every_file_says_what_it_is():
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_a_circle_would_be_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
