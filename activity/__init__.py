"""When and on what a feature fires. `python -m activity --help`; profile.py has the terms."""
