"""Qwen2.5-VL: a vision tower with windows for images of any size, and Qwen2.5 with positions on three axes."""
