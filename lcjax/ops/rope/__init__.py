"""Rotary position embedding: the frequencies that a config specifies, the angles, and the rotation.

api.py           `lcjax.ops.rope`
frequencies.py   the frequencies of every kind of RoPE
turns.py         angles as exact fractions of a turn
tables.py        cosines and sines by position
reference.py     the specification
report.py        a report of what a change of RoPE does, in numbers
"""

from lcjax.ops.rope.frequencies import inverse_frequencies as inverse_frequencies
from lcjax.ops.rope.frequencies import layer_rotation as layer_rotation
from lcjax.ops.rope.tables import rope_tables as rope_tables
