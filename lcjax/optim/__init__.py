"""Schedules and AdamW, as one `optax.GradientTransformation`.

schedules.py   the learning rate of each step
adamw.py       the optimizer of a run
layerwise.py   AdamW layer by layer, with its state in host memory
"""

from lcjax.optim.adamw import make_optimizer as make_optimizer
from lcjax.optim.schedules import make_schedule as make_schedule
from lcjax.optim.schedules import warmup_length as warmup_length
