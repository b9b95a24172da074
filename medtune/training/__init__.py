"""The trainer for all methods: one process or several; full tuning, LoRA or QLoRA; exact resume."""
