"""Whether two commits compute the same numbers: what a change that only moves code is held to."""
