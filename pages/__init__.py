"""Results on disk, and the pages that show them. `python -m pages --help`; files.py says what lies where."""
