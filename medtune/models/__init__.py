"""Vision-language models: the seam that every method uses, and one package per family."""
