"""Post-training of vision-language models on medical images, built from torchtune's parts.

Nothing is imported here on purpose: ``medtune --help`` has to answer at once, and recipes import what they use from the
submodules (``from medtune.data.sample import Sample``).
"""

import logging

__version__ = "0.1.0"

# torchao says on import that its compiled kernels were built for another torch. Nothing here uses them.
logging.getLogger("torchao").addFilter(lambda record: "Skipping import of cpp extensions" not in record.getMessage())
