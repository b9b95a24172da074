"""The protocols by name, and the full list of queries that a question file gives."""
