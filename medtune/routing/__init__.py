"""Routing of questions to adapters: a classifier of the question's task chooses the adapter that answers (ME-VLIP)."""
