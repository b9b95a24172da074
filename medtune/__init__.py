"""Post-training of vision-language models on medical images, built on torchtune.

Nothing is imported here on purpose: ``medtune --help`` has to be fast, and recipes import what they use from the
submodules (``from medtune.data.sample import Sample``).
"""

import logging

__version__ = "0.1.0"

# torchao warns on import that its compiled kernels were built for another torch. medtune does not use them.
logging.getLogger("torchao").addFilter(lambda record: "Skipping import of cpp extensions" not in record.getMessage())
