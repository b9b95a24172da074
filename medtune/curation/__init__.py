"""Instruction data curated with clinicians' preferences (BioMed-VITAL): groups, generation, rating, selection."""
