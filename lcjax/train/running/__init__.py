"""What a run computes: its step on its devices (`computation`), its losses on held-out text.

`early_weights` loads the weights for it while the data is read.
"""
