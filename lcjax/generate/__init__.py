"""Text generation with a KV cache, and `lcjax generate`."""

from typing import TYPE_CHECKING

from lcjax.lazy import lazily

if TYPE_CHECKING:
    from lcjax.generate.generator import Generator
    from lcjax.generate.sampling import Sampling
    from lcjax.generate.text import TextStream, stop_ids

__all__ = ["Generator", "Sampling", "TextStream", "stop_ids"]

__getattr__ = lazily(
    __name__,
    {
        "Generator": "lcjax.generate.generator",
        "Sampling": "lcjax.generate.sampling",
        "TextStream": "lcjax.generate.text",
        "stop_ids": "lcjax.generate.text",
    },
)
