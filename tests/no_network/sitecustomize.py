"""Python runs this at the start of every process that a test launches, since conftest puts the folder on PYTHONPATH."""

import network_guard

network_guard.install()
