"""From files to a `Model` (load.py), and how the files get here (fetch.py, convert.py)."""
