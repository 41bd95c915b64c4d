"""lcjax: long-context fine-tuning of Llama-family models in JAX.

The public names are loaded on first use, so `import lcjax` and a command's `--help` do not import
JAX.
"""

import sys
from typing import TYPE_CHECKING

from lcjax.cli.startup import end_quietly_on_signals
from lcjax.lazy import lazily

if sys.argv[:1] == ["-m"] and any(word.split(".")[0] == "lcjax" for word in sys.orig_argv[1:3]):
    # `python -m lcjax.train` imports this package first. From here on, a signal ends it in one
    # line.
    end_quietly_on_signals()

if TYPE_CHECKING:
    from lcjax.api import from_pretrained, get_peft_model, load_adapter, save_gguf, save_merged, save_pretrained
    from lcjax.config import LlamaConfig, LoraConfig
    from lcjax.config.training import TrainingArguments
    from lcjax.errors import InputError
    from lcjax.model import Llama
    from lcjax.ops.attention import masks
    from lcjax.train import train

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Llama",
    "LlamaConfig",
    "LoraConfig",
    "TrainingArguments",
    "from_pretrained",
    "get_peft_model",
    "load_adapter",
    "masks",
    "save_gguf",
    "save_merged",
    "save_pretrained",
    "train",
]

__getattr__ = lazily(
    __name__,
    {
        **dict.fromkeys(
            ("from_pretrained", "get_peft_model", "load_adapter", "save_gguf", "save_merged", "save_pretrained"),
            "lcjax.api",
        ),
        **dict.fromkeys(("LlamaConfig", "LoraConfig"), "lcjax.config"),
        "InputError": "lcjax.errors",
        "Llama": "lcjax.model",
        "TrainingArguments": "lcjax.config.training",
        "masks": "lcjax.ops.attention",
        "train": "",  # the package, which is callable
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
