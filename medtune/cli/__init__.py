"""The command ``medtune``: argument parsing, the catalog of recipes and configs, and checks of the installation."""
