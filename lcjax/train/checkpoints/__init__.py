"""What a run needs to go on exactly: its checkpoints, verified, and the folder that it alone works in."""
