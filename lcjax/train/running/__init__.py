"""What a run computes: its step on its devices (`computation`), its losses on held-out text."""
