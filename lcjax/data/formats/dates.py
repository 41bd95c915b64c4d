"""The date that a chat template writes, fixed for a run.

So the text is the same if a run is rendered again on another day.
"""

from __future__ import annotations

import datetime
import json
import string

# The function of transformers that templates call for the date; released templates of Llama 3 and
# Mistral do.
_FUNCTION = "strftime_now"


def with_date(template: str, date: datetime.datetime) -> str:
    """A template in which every call of `strftime_now` returns this date instead of the clock's.

    transformers cannot pass functions to a template, so the function is a macro at its beginning.
    The macro replaces each directive of the format by the result of `strftime`; no result contains
    a percent sign.
    """
    if _FUNCTION not in template:
        return template
    directives = [f"%{flag}{letter}" for letter in string.ascii_letters for flag in ("", "-")]
    values = {directive: date.strftime(directive) for directive in directives}
    known = {directive: value for directive, value in values.items() if not value.startswith("%")}
    # The last newline belongs to the macro (trim_blocks), so the template still begins on its own
    # line.
    return (
        f"{{%- macro {_FUNCTION}(format) -%}}"
        "{%- set text = namespace(value=format.replace('%%', '\\x00')) -%}"
        f"{{%- for directive, value in {json.dumps(known)}.items() -%}}"
        "{%- set text.value = text.value.replace(directive, value) -%}"
        "{%- endfor -%}{{- text.value.replace('\\x00', '%') -}}{%- endmacro %}\n"
    ) + template
