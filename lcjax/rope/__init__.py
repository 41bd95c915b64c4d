"""Rotary position embedding: the frequencies that a config asks for, its angles, and the choice for longer contexts."""

from lcjax.rope.choice import CHOICES as CHOICES
from lcjax.rope.choice import check_choice as check_choice
from lcjax.rope.choice import choose_rope as choose_rope
from lcjax.rope.choice import describe_rope as describe_rope
from lcjax.rope.frequencies import attention_factor as attention_factor
from lcjax.rope.frequencies import inverse_frequencies as inverse_frequencies
from lcjax.rope.tables import LONGEST as LONGEST
from lcjax.rope.tables import rope_tables as rope_tables
