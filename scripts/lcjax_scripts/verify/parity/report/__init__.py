"""The harness's report: progress, a summary on the terminal, JSON and an HTML page."""
