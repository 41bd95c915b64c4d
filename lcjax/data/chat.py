"""Conversations as the text that a model is trained on, and which of it the assistant said."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from lcjax.data.dates import with_date

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]
Span = tuple[int, int]
"""Characters start, ..., stop - 1 of a text."""

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class CannotRender(Exception):
    """The conversation does not fit the template; the message says why."""


class ChatTemplate:
    """The chat template of a tokenizer.

    The text is `apply_chat_template`'s, a system prompt that the template adds by itself included. An assistant's turn begins after
    what the template writes to ask for it and ends with its end token. Where the template marks turns with `{% generation %}`, its
    marks are taken; else a turn is what the conversation grows by when it is added. A template that writes earlier turns
    differently once later ones follow (Qwen3's drops their thoughts) is therefore refused for such conversations.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, date: datetime.datetime | None = None):
        """Takes the template of `tokenizer`; `date` is what it writes as today's, the present one when None."""
        self._tokenizer = tokenizer
        self._date = date or datetime.datetime.now()

    @functools.cached_property
    def _template(self) -> str:
        if not self._tokenizer.chat_template:
            raise CannotRender("needs a chat template, which the tokenizer lacks; use the model's instruct version")
        try:
            template: Any = self._tokenizer.get_chat_template()
        except ValueError as error:  # several, and none is the default
            raise CannotRender(f"needs one chat template ({error})") from None
        return with_date(template, self._date)

    @functools.cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        return tuple(token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special)

    def conversation(self, messages: Sequence[Message]) -> tuple[str, tuple[Span, ...]]:
        """The text of a whole conversation and the spans of the assistant's turns.

        Raises:
          CannotRender: the template refuses it, rewrites turns, or the assistant does not speak.
        """
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise CannotRender("has no turn of the assistant")
        if _MARKERS.search(self._template):
            text, spans = self._render(messages, marks=True)
            return text, tuple(spans)
        text = self._render(messages)[0]
        return text, tuple(self._grown(text, messages[:turn], messages[: turn + 1]) for turn in turns)

    def completion(self, prompt: Sequence[Message], completion: Sequence[Message]) -> tuple[str, tuple[Span, ...]]:
        """The text of a prompt with its completion, and the completion's span.

        Raises:
          CannotRender: the template refuses them or writes the prompt differently once the completion follows.
        """
        messages = [*prompt, *completion]
        text = self._render(messages)[0]
        return text, (self._grown(text, prompt, messages),)

    def _grown(self, text: str, before: Sequence[Message], after: Sequence[Message]) -> Span:
        """What of the text the last messages of `after` wrote, which `before` lacks."""
        if not before:
            raise CannotRender("begins with the assistant; put a user's turn first")
        asked, answered = self._render(before, asks=True)[0], self._render(after)[0]
        if not (text.startswith(asked) and text.startswith(answered) and len(asked) < len(answered)):
            raise CannotRender(
                f"is written differently by the chat template up to message {len(before)} and as a whole; end the row there, or "
                "use a template with {% generation %} marks"
            )
        turn = answered[len(asked) :].rstrip()
        # White space after the end token is the template's, which no model has to say.
        return len(asked), len(asked) + len(turn) if turn.endswith(self._special_tokens) else len(answered)

    def _render(
        self, messages: Sequence[Message], *, asks: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        """The text, ending in the request for the assistant's turn if it `asks`, and the spans that the template `marks`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        options: dict[str, Any] = {
            "return_assistant_tokens_mask": marks,
            "add_generation_prompt": asks,
            **self._tokenizer.special_tokens_map,
        }
        try:
            rendered: Any = render_jinja_template(
                [[dict(message) for message in messages]], chat_template=self._template, **options
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise CannotRender(f"is refused by the chat template ({' '.join(str(error).split())[:200]})") from None
        texts, spans = rendered
        return texts[0], spans[0] if marks else []
