"""The jobs of ``benchmark/gpu.py``: what is measured on a GPU, most valuable first."""
