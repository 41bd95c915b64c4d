"""The card of an adapter or a model: README.md with YAML front matter, as hubs read it.

A card has nothing private: no path and no name of a file of the training data.

Source: the specification of model cards in the documentation of the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.yaml_files import as_yaml
from lcjax.weights.cards.names import hub_id, shown_name

CARD = "README.md"
_MARK = "<!-- This card was written by lcjax. -->"
_TRAINING = "## Training"
_LOADING = "## How to load it"


def adapter_card(
    base_model: str, lora: LoraConfig, config: LlamaConfig | None = None, figures: Mapping[str, str] | None = None
) -> str:
    """The card of an adapter.

    Args:
      base_model: the hub id or the path of the base model.
      lora: the adapter's config.
      config: the base model as the adapter was trained on it.
      figures: what was measured and set during the training, in the order of the table.
    """
    name, base = shown_name(base_model), hub_id(base_model) or "BASE_MODEL"
    settings = {
        "rank, alpha, dropout": f"{lora.r}, {lora.lora_alpha:g}, {lora.lora_dropout:g}",
        "adapted linear maps": ", ".join(lora.target_modules),
    }
    scaled = config is not None and config.rope_scaling.rope_type != "default"
    rope = (
        "The base model needs the RoPE of the training: give `AutoModelForCausalLM.from_pretrained` the argument\n"
        '`config=AutoConfig.from_pretrained("base_config.json")`, with the path of that file.\n\n'
    )
    loading = f"""\
With transformers and PEFT, where `DIRECTORY` is this folder or its hub id:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
```

{rope if scaled else ""}With lcjax, where `DIRECTORY` is this folder:

```python
import lcjax

model, tokenizer = lcjax.from_pretrained("{base}")
model = lcjax.load_adapter(model, "DIRECTORY")
```
"""
    front = _front_matter(base_model, "peft", ["lcjax", "lora", "transformers"], "adapter")
    return _card(front, f"LoRA adapter of {name}", _section(settings | dict(figures or {})), loading)


def model_card(base_model: str, *, merged: bool, figures: Mapping[str, str] | None = None, training: str = "") -> str:
    """The card of a whole model.

    Args:
      base_model: the hub id or the path of the model that it was made from.
      merged: whether an adapter was merged into it; otherwise all of its weights were trained.
      figures: as in `adapter_card`.
      training: the section of an adapter's card, instead of `figures`; see `training_section`.
    """
    loading = """\
`DIRECTORY` is this folder or its hub id. With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
```

With lcjax:

```python
import lcjax

model, tokenizer = lcjax.from_pretrained("DIRECTORY")
```
"""
    tags = ["lcjax", *(["lora"] if merged else [])]
    front = _front_matter(base_model, "transformers", tags, "finetune")
    title = f"{shown_name(base_model)} with {'a merged LoRA adapter' if merged else 'fine-tuned weights'}"
    return _card(front, title, training or _section(figures or {}), loading)


def training_section(directory: Path) -> str:
    """The section about the training in a card of lcjax; "" if the directory has no such card."""
    text = _read(directory / CARD)
    if _MARK not in text or _TRAINING not in text:
        return ""
    return text.partition(_TRAINING)[2].partition(_LOADING)[0].strip()


def write_card(staging: Path, target: Path, card: str | None) -> None:
    """Writes a card to a staged directory, unless the target has a README.md of someone else.

    Raises:
      OSError: the disk is full or the directory cannot be written.
    """
    former = target.expanduser() / CARD
    if card is not None and (not former.exists() or _MARK in _read(former)):
        (staging / CARD).write_text(card, encoding="utf-8")


def _front_matter(base_model: str, library: str, tags: list[str], relation: str) -> str:
    name = hub_id(base_model)
    about_base = {} if name is None else {"base_model": name, "base_model_relation": relation}
    if name is not None and relation == "adapter":
        tags = [f"base_model:adapter:{name}", *tags]
    return as_yaml({**about_base, "library_name": library, "pipeline_tag": "text-generation", "tags": tags})


def _section(figures: Mapping[str, str]) -> str:
    if not figures:
        return ""
    rows = [f"| {name} | {value.replace('|', ' ')} |" for name, value in figures.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _card(front: str, title: str, training: str, loading: str) -> str:
    about = f"{_TRAINING}\n\n{training}\n\n" if training else ""
    return f"---\n{front}---\n\n{_MARK}\n\n# {title}\n\n{about}{_LOADING}\n\n{loading}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # it is someone else's
        return ""
