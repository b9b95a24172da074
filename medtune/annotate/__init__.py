"""A page on which clinicians choose the better of two answers: `medtune annotate`."""
