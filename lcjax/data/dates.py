"""The date that a chat template writes: the run's own, so that a run rendered again on another day has the same text."""

from __future__ import annotations

import datetime
import json
import string

# What transformers calls in a template for the date; released templates of Llama 3 and Mistral do.
_FUNCTION = "strftime_now"


def with_date(template: str, date: datetime.datetime) -> str:
    """A template that gives every call of `strftime_now` this date instead of the clock's.

    transformers hands functions to no template, so the function is a macro in front of it. It replaces each directive of the
    format by what `strftime` gives for it; the value of none of them holds a per cent sign.
    """
    if _FUNCTION not in template:
        return template
    directives = [f"%{flag}{letter}" for letter in string.ascii_letters for flag in ("", "-")]
    values = {directive: date.strftime(directive) for directive in directives}
    known = {directive: value for directive, value in values.items() if not value.startswith("%")}
    # The last line end belongs to the macro (trim_blocks), and the template begins on a line of its own, as it did.
    return (
        f"{{%- macro {_FUNCTION}(format) -%}}"
        "{%- set text = namespace(value=format.replace('%%', '\\x00')) -%}"
        f"{{%- for directive, value in {json.dumps(known)}.items() -%}}"
        "{%- set text.value = text.value.replace(directive, value) -%}"
        "{%- endfor -%}{{- text.value.replace('\\x00', '%') -}}{%- endmacro %}\n"
    ) + template
