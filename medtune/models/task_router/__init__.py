"""The task classifier of ME-VLIP (GLiClass): labels and question in one sequence, a score for each label."""
