"""What the files of a run say: its records, a summary in lines, and report.html."""
