"""Text from a model: KV-cached generation, and `python -m lcjax.generate`."""

from lcjax.generate.generator import Generator
from lcjax.generate.sampling import Sampling
from lcjax.generate.text import TextStream, stop_ids

__all__ = ["Generator", "Sampling", "TextStream", "stop_ids"]
