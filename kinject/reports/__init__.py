"""What a run or a sweep left on disk, read back and shown: results, tables on the terminal, plots, the HTML page."""
