"""``medtune serve``: answers OpenAI's chat completions API with one of medtune's own models and its adapters."""
