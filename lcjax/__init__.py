"""lcjax: long-context fine-tuning of Llama-family models in JAX."""

from lcjax.api import from_pretrained, get_peft_model, load_adapter, save_merged, save_pretrained
from lcjax.config import LlamaConfig, LoraConfig
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.train import TrainingArguments, train

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
    "save_merged",
    "save_pretrained",
    "train",
]
