// No script: all of this page lies open.
