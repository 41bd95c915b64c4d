"""Chat templates, and functions that write and read conversations."""

from __future__ import annotations

import json

from lcjax.data import ChatTemplate, read_documents, tokenize

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}BODY{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = CHATML.replace("BODY", "{{ message['content'] + '<|im_end|>' }}")
MARKED = CHATML.replace(
    "BODY",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}",
)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path, tokenizer):
    return tokenize(read_documents([path], ChatTemplate(tokenizer)), tokenizer, vocab_size=len(tokenizer))
