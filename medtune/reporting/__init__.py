"""Reports: several evaluated runs in one self-contained HTML page, one JSON file and one CSV file."""
