"""Models: the interface that every method uses, and one package per family."""
