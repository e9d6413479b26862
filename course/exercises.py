"""The fourteen exercises as exercises.toml describes them. The functions are the project's own: the file that an
exercise names is its solution."""
import importlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise: functions of one file of the project, or, without a file, open questions."""
    number: int
    part: str
    title: str
    objective: str
    difficulty: int                             # 1 to 5
    minutes: int
    prerequisite: str
    names: list                                 # functions that the student writes
    hints: list
    file: str = ""                              # of the project, "ascent.py"
    owner: str = ""                             # the class that the functions are methods of
    wrong: dict = field(default_factory=dict)   # name -> [[sentence, a piece of the function, its replacement, ...]]
    task: str = ""                              # the open questions

    @property
    def module(self):
        return importlib.import_module(self.file.removesuffix(".py").replace("/", "."))

    def ours(self, name):
        """Return the project's function."""
        return getattr(getattr(self.module, self.owner) if self.owner else self.module, name)


TEXT = Path(__file__).with_name("exercises.toml").read_text(encoding="utf-8")
EXERCISES = [Exercise(**entry) for entry in tomllib.loads(TEXT)["exercise"]]
