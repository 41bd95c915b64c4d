"""Rotary position embedding: the frequencies that a config asks for, its angles, and the rotation.

api.py           `lcjax.ops.rope`
frequencies.py   of every kind of RoPE
tables.py        cosines and sines by position
reference.py     the specification
report.py        what another RoPE changes, in figures
"""

from lcjax.ops.rope.frequencies import inverse_frequencies as inverse_frequencies
from lcjax.ops.rope.tables import rope_tables as rope_tables
