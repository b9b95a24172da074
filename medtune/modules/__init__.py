"""The layers that the papers add to a vision-language model."""
