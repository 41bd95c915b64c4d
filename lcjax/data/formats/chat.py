"""Renders conversations as training text and finds the assistant's turns in it."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from lcjax.data.formats.dates import with_date

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]
Span = tuple[int, int]
"""The characters start, ..., stop - 1 of a text."""

_MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_TOOLS = re.compile(r"\btools\b")


class CannotRender(Exception):
    """The conversation does not fit the template; the message gives the reason."""


class ChatTemplate:
    """The chat template of a tokenizer.

    The text is that of `apply_chat_template`, including a system prompt that the template adds by
    itself. An assistant's turn begins after the generation prompt of the template and ends with the
    end token. If the template marks turns with `{% generation %}`, its marks are used. Otherwise a
    turn is the text that is appended when the turn is added. Some templates write earlier turns
    differently once later turns follow (Qwen3's omits their thoughts). Without marks such
    conversations are rejected.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, date: datetime.datetime | None = None):
        """Takes the template of `tokenizer`; `date` is what it writes as today's, None for now."""
        self._tokenizer = tokenizer
        self._date = date or datetime.datetime.now()
        self._templates: dict[bool, str] = {}

    def _template(self, tools: bool = False) -> str:
        """The template; with tools, the tokenizer's separate template for tools if it has one."""
        if tools not in self._templates:
            if not self._tokenizer.chat_template:
                raise CannotRender("needs a chat template, which the tokenizer lacks; use the model's instruct version")
            try:
                # Only the presence of tools matters here.
                template: Any = self._tokenizer.get_chat_template(tools=[{}] if tools else None)
            except ValueError as error:  # several templates, and none is the default
                raise CannotRender(f"needs one chat template ({error})") from None
            self._templates[tools] = with_date(template, self._date)
        return self._templates[tools]

    def definition(self) -> str:
        """Everything that determines the text of a conversation."""
        templates = []
        for tools in (False, True):
            try:
                templates.append(self._template(tools))
            except CannotRender as error:
                templates.append(str(error))
        return repr((templates, self._special_tokens, sorted(self._tokenizer.special_tokens_map.items())))

    @functools.cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        return tuple(token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special)

    @property
    def writes_tools(self) -> bool:
        """Whether the template can write the definitions of tools."""
        return _TOOLS.search(self._template(tools=True)) is not None

    def conversation(self, messages: Sequence[Message], tools: Tools | None = None) -> tuple[str, tuple[Span, ...]]:
        """The text of a whole conversation and the spans of the assistant's turns.

        Args:
          messages: the turns.
          tools: JSON schemas of the functions that may be called, in case the template writes them.

        Raises:
          CannotRender: the template rejects the conversation, or rewrites or does not mark turns,
            or there is no turn of the assistant.
        """
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise CannotRender("has no turn of the assistant")
        if _MARKERS.search(self._template(bool(tools))):
            text, spans = self._render(messages, tools, marks=True)
            return text, _checked(text, spans)
        text = self._render(messages, tools)[0]
        return text, tuple(self._grown(text, messages[:turn], messages[: turn + 1], tools) for turn in turns)

    def completion(
        self, prompt: Sequence[Message], completion: Sequence[Message], tools: Tools | None = None
    ) -> tuple[str, tuple[Span, ...]]:
        """The text of a prompt with its completion, and the completion's span.

        Raises:
          CannotRender: the template rejects them, or writes the prompt differently once the
            completion follows.
        """
        messages = [*prompt, *completion]
        text = self._render(messages, tools)[0]
        return text, (self._grown(text, prompt, messages, tools),)

    def _grown(self, text: str, before: Sequence[Message], after: Sequence[Message], tools: Tools | None) -> Span:
        """The span of text that the messages in `after` but not in `before` add."""
        if not before:
            raise CannotRender("begins with the assistant; put a user's turn first")
        prompt, answered = self._render(before, tools, generation_prompt=True)[0], self._render(after, tools)[0]
        if not (text.startswith(prompt) and text.startswith(answered) and len(prompt) < len(answered)):
            raise CannotRender(
                f"is written differently by the chat template up to message {len(before)} and as a "
                "whole; end the row there, or use a template with {% generation %} marks"
            )
        turn = answered[len(prompt) :].rstrip()
        # White space after the end token belongs to the template; the model need not learn it.
        return len(prompt), len(prompt) + len(turn) if turn.endswith(self._special_tokens) else len(answered)

    def _render(
        self, messages: Sequence[Message], tools: Tools | None, *, generation_prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        """The text, with a generation prompt if requested, and the template's marked spans."""
        from transformers.utils.chat_template_utils import render_jinja_template

        options: dict[str, Any] = {
            "tools": [dict(tool) for tool in tools] if tools else None,
            "return_assistant_tokens_mask": marks,
            "add_generation_prompt": generation_prompt,
            **self._tokenizer.special_tokens_map,
        }
        template = self._template(bool(tools))
        try:
            rendered: Any = render_jinja_template(
                [[dict(message) for message in messages]], chat_template=template, **options
            )
        except Exception as error:  # a template is a program and may raise anything
            reason = " ".join(str(error).split())[:200]
            if not isinstance(error, jinja2.TemplateError):
                reason = f"{type(error).__name__}: {reason}"
            raise CannotRender(f"is rejected by the chat template ({reason})") from None
        texts, spans = rendered
        return texts[0], spans[0] if marks else []


def _checked(text: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Checks that a template's marked spans are in the text, in order, and not all empty.

    Marks are wrong inside text that a template first collects and then writes ({% set %}, a macro).
    """
    last = 0
    for start, stop in spans:
        if not last <= start <= stop <= len(text):
            raise CannotRender(
                "has marks of the chat template ({% generation %}) that are not inside its text or not in order"
            )
        last = stop
    if not any(text[start:stop].strip() for start, stop in spans):
        raise CannotRender("has nothing that the chat template marks as the assistant's ({% generation %})")
    return tuple(span for span in spans if span[0] < span[1])
