"""Scores of generated reports: shared words, findings, and a served model that counts errors."""
