"""Post-training of vision-language models on medical images, built from torchtune's parts.

Nothing is imported here on purpose: ``medtune --help`` has to answer at once, and recipes import what they use from the
submodules (``from medtune.data.sample import Sample``).
"""

__version__ = "0.1.0"
