"""The one trainer: one process or many, full, LoRA or QLoRA, any objective, exact resume."""
