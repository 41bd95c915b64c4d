"""Training: `lcjax.train(model, tokenizer, data, ...)` and `lcjax train`.

The package itself is callable: calling it calls `lcjax.train.loop.train`.
"""

import sys
import types
from typing import TYPE_CHECKING, Any

from lcjax.lazy import lazily

if TYPE_CHECKING:
    from lcjax.config.training import TrainingArguments
    from lcjax.train.arguments import RunArguments
    from lcjax.train.divergence import TrainingDiverged
    from lcjax.train.loop import train
    from lcjax.train.result import TrainingResult

__all__ = ["RunArguments", "TrainingArguments", "TrainingDiverged", "TrainingResult", "train"]

__getattr__ = lazily(
    __name__,
    {
        "RunArguments": "lcjax.train.arguments",
        "TrainingArguments": "lcjax.train.arguments",
        "TrainingDiverged": "lcjax.train.divergence",
        "TrainingResult": "lcjax.train.result",
        "train": "lcjax.train.loop",
    },
)


class _CallablePackage(types.ModuleType):
    """A package that can be called like the function `train`.

    Once any of its modules is imported, the name `lcjax.train` refers to this package.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> "TrainingResult":
        from lcjax.train.loop import train

        return train(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        """The function, whose signature `inspect` and `help` show."""
        from lcjax.train.loop import train

        return train


sys.modules[__name__].__class__ = _CallablePackage
