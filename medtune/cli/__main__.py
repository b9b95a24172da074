"""``python -m medtune.cli`` is the command ``medtune``."""

import sys

from medtune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
