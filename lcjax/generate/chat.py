"""Encodes the turns of a conversation in the format that the model was trained on."""

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
    """The messages' tokens in the chat template, up to the start of the assistant's next turn.

    Raises:
      InputError: the tokenizer has no template, or the template rejects the messages.
    """
    if not tokenizer.chat_template:
        raise InputError("this model's tokenizer has no chat template; give --prompt without --chat")
    from jinja2 import TemplateError

    try:
        return cast(
            list[int], tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        )
    except TemplateError as error:  # templates reject unsupported turns, such as a system turn
        raise InputError(f"the chat template rejects these messages ({error}); omit --system") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Errors of the template's own expressions, such as adding a text and a number.
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the chat template fails on these messages ({reason}); give --prompt without --chat"
        ) from None
