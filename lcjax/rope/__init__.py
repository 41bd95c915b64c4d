
from lcjax.rope.frequencies import attention_factor as attention_factor
from lcjax.rope.frequencies import inverse_frequencies as inverse_frequencies
from lcjax.rope.tables import LONGEST as LONGEST
from lcjax.rope.tables import rope_tables as rope_tables
