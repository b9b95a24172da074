"""Reports: several evaluated runs on one self-contained page, in one JSON file and in one CSV file."""
