"""Results on disk, and the pages that show them. `python -m pages --help`; results.py says what lies where."""
