"""Exercises that check what a student writes, cut from the project's own code."""
