"""Turns of a conversation as the tokens that the model was trained to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lcjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def chat_ids(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> list[int]:
    """The tokens of the messages in the tokenizer's chat template, up to where the assistant's next turn begins.

    Raises:
      InputError: the tokenizer has no template, or its template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise InputError("this model's tokenizer has no chat template; give --prompt without --chat")
    from jinja2 import TemplateError

    try:
        return cast(
            list[int], tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        )
    except TemplateError as error:  # templates refuse what they do not know, such as a system's turn
        raise InputError(f"the chat template refuses these messages ({error}); leave --system out") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What the template's own expressions raise, such as the sum of a text and a number.
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the chat template fails on these messages ({reason}); give --prompt without --chat"
        ) from None
