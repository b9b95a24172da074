"""The command ``medtune``: what it does, finds and checks."""
