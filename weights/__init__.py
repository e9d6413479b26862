"""From files to a `Model` (load.py), and how the files get here (fetch.py, convert.py)."""


class WeightsError(ValueError):
    """Weights that cannot be used. The text is one line: the file, the cause, what to do."""
