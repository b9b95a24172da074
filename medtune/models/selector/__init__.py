"""The selection model of BioMed-VITAL: it scores a question with its answer and image."""
