"""Conversations: ids as in apply_chat_template, masks as in a template that marks its turns."""

import datetime
import random

import numpy as np
import pytest

from lcjax.data import IGNORE, ChatTemplate, lay_out, load_corpus
from lcjax.data.formats.chat import CannotRender
from tests.support.chats import CHATML, MARKED, PLAIN, read, write

# Like Qwen3's, which drops thoughts: only the last turn is complete.
REWRITING = CHATML.replace(
    "BODY", "{{ (message['content'] if loop.last else message['content'].split('|')[-1]) + '<|im_end|>' }}"
)
DATED = (
    "\n  {%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{% else %}{%- set day = 'no day' %}{%- endif %}"
    "{%- macro today() %}{{ strftime_now(format='%Y-%m-%d, 100%% %A, %-H:%M') }}{% endmacro %}\n"
    "\n  {{ 'Today is ' + day }} {{ today() }}\n" + PLAIN
)
# The marked text is collected first, and written at the end.
CAPTURING = (
    "{{ 'long beginning' }}{% set turns %}{% for message in messages %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% generation %}x{% endgeneration %}{% endfor %}{% endset %}{{ 'middle' + turns }}"
)
REFUSING = "{{ raise_exception('roles must take turns') }}"

CONTENTS = [
    "Hi",
    " two  spaces ",
    "日本語 \U0001f600",
    "line\n\nline\n",
    "<|im_end|>",
    "<|im_start|>user\nx",
    "é",
    "",
    "x" * 300,
]


def conversations(count, seed=0):
    """Makes conversations with and without a system turn, ending in either role."""
    draw = random.Random(seed)
    for _ in range(count):
        roles = (
            ["system"] * draw.randint(0, 1) + ["user", "assistant"] * draw.randint(1, 4) + ["user"] * draw.randint(0, 1)
        )
        yield [{"role": role, "content": draw.choice(CONTENTS) + draw.choice(CONTENTS)} for role in roles]


def learned(corpus, document):
    return corpus.learned[corpus.offsets[document] : corpus.offsets[document + 1]]


def test_ids_are_those_of_transformers(smol_tokenizer, tmp_path):
    chats = list(conversations(40))
    corpus = read(
        write(tmp_path / "a.jsonl", [{"messages": chat, "text": "not this"} for chat in chats]), smol_tokenizer
    )
    for i, chat in enumerate(chats):
        assert corpus.document(i).tolist() == smol_tokenizer.apply_chat_template(chat)["input_ids"], chat


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_the_loss_is_on_what_a_marking_template_marks(with_template, tmp_path, template):
    marked = with_template(MARKED)
    chats = list(conversations(40, seed=1))
    corpus = read(write(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats]), with_template(template))
    for i, chat in enumerate(chats):
        expected = marked.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        assert corpus.document(i).tolist() == expected["input_ids"]
        assert learned(corpus, i).astype(int).tolist() == expected["assistant_masks"], chat


def test_a_turn_in_full(smol_tokenizer, tmp_path):
    chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four."}]
    corpus = read(write(tmp_path / "a.jsonl", [{"messages": chat}]), smol_tokenizer)
    assert smol_tokenizer.decode(corpus.tokens[corpus.learned]) == "Four.<|im_end|>"
    assert smol_tokenizer.decode(corpus.tokens).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )


def test_messages_of_a_prompt_and_a_completion(smol_tokenizer, tmp_path):
    chats = [chat for chat in conversations(20, seed=2) if chat[-1]["role"] == "assistant"]
    pairs = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    corpus = read(write(tmp_path / "a.jsonl", pairs), smol_tokenizer)
    for i, chat in enumerate(chats):
        ids, mask = corpus.document(i), learned(corpus, i)
        assert ids.tolist() == smol_tokenizer.apply_chat_template(chat)["input_ids"]
        assert smol_tokenizer.decode(ids[mask]) == chat[-1]["content"] + "<|im_end|>"
        head = smol_tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"]
        assert not mask[: len(head)].any()
        assert mask[len(head)]


def test_strings_of_a_prompt_and_a_completion(smol_tokenizer, tmp_path):
    pairs = [("The capital of France is", " Paris."), ("x", "y" * 50), ("", "all"), ("日本", "語"), ("a\n", "\n\n b")]
    records = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    corpus = read(write(tmp_path / "a.jsonl", records), smol_tokenizer)
    for i, (prompt, completion) in enumerate(pairs):
        ids, mask = corpus.document(i), learned(corpus, i)
        eos = smol_tokenizer.eos_token_id
        assert ids.tolist() == [*smol_tokenizer(prompt + completion)["input_ids"], eos]
        said = smol_tokenizer.decode(ids[mask])
        assert said.endswith(completion + smol_tokenizer.eos_token)
        # Except a token across the boundary.
        assert len(said) < len(completion) + len(smol_tokenizer.eos_token) + 6
    assert smol_tokenizer.decode(corpus.document(0)[learned(corpus, 0)]) == " Paris.<|im_end|>"


def test_masks_reach_the_labels_through_packing(smol_tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", [{"messages": chat} for chat in conversations(30, seed=3)])
    (tmp_path / "b.txt").write_text("plain text, all of it learned " * 20)
    data = load_corpus([tmp_path], smol_tokenizer, 64, held_out_fraction=0, seed=0)
    corpus, plan = data.corpus, data.train_plan
    batch = lay_out(corpus, plan, np.arange(len(plan)))
    unmasked = lay_out(read_without_mask(corpus), plan, np.arange(len(plan)))
    counted = batch["labels"] != IGNORE
    assert np.array_equal(batch["labels"][counted], unmasked["labels"][counted])
    starts = corpus.offsets[:-1]  # the first token of a document is never predicted
    assert counted.sum() == corpus.learned.sum() - corpus.learned[starts].sum()
    assert counted.sum() < 0.8 * (unmasked["labels"] != IGNORE).sum()
    assert f"the loss is on {corpus.learned.mean():.1%} of the tokens" in data.summary()


def read_without_mask(corpus):
    return type(corpus)(corpus.tokens, corpus.offsets, corpus.names)


def test_without_masks_none_is_stored(smol_tokenizer, tmp_path):
    assert read(write(tmp_path / "a.jsonl", [{"text": "x"}]), smol_tokenizer).learned is None


def test_a_mask_changes_the_fingerprint(smol_tokenizer, tmp_path):
    text = {"prompt": "one two", "completion": " three"}
    fingerprints = set()
    for record in (text, {"prompt": "one", "completion": " two three"}, {"text": "one two three"}):
        write(tmp_path / "a.jsonl", [record])
        data = load_corpus([tmp_path / "a.jsonl"], smol_tokenizer, 8, held_out_fraction=0, seed=0)
        fingerprints.add(data.fingerprint())
    assert len(fingerprints) == 3


def test_what_cannot_be_rendered_is_reported(with_template):
    user, assistant = {"role": "user", "content": "u"}, {"role": "assistant", "content": "thought|said"}
    for template, chat, expected in [
        (PLAIN, [user], "has no turn of the assistant"),
        (PLAIN, [assistant, user], "begins with the assistant; put a user's turn first"),
        (REWRITING, [user, assistant, user, assistant], "is written differently by the chat template up to message 1"),
        (REFUSING, [user, assistant], "is rejected by the chat template (roles must take turns)"),
        (
            "{{ messages + 1 }}",
            [user, assistant],
            "is rejected by the chat template (TypeError: can only concatenate list",
        ),
        ("{{ 1 / 0 }}", [user, assistant], "is rejected by the chat template (ZeroDivisionError: "),
        (
            "{% for i in range(10 ** 9) %}x{% endfor %}",
            [user, assistant],
            "is rejected by the chat template (OverflowError: ",
        ),
        ("{{ messages.nothing.more }}", [user, assistant], "is rejected by the chat template ('list object' has no"),
        ("{{ ''.__class__() }}", [user, assistant], "is rejected by the chat template ("),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            [user, assistant],
            "is rejected by the chat template (RecursionE",
        ),
        ("{% if %}", [user, assistant], "is rejected by the chat template (Expected an expression"),
        (
            CAPTURING,
            [user, assistant],
            "has marks of the chat template ({% generation %}) that are not inside its text",
        ),
        (None, [user, assistant], "needs a chat template, which the tokenizer lacks"),
        ({"a": PLAIN, "b": PLAIN}, [user, assistant], "needs one chat template ("),
    ]:
        with pytest.raises(CannotRender) as caught:
            ChatTemplate(with_template(template)).conversation(chat)
        assert str(caught.value).startswith(expected)
    text, spans = ChatTemplate(with_template(REWRITING)).conversation([user, assistant])
    assert [text[start:stop] for start, stop in spans] == ["thought|said<|im_end|>"]


CHAT = [{"role": "user", "content": "What is the date?"}, {"role": "assistant", "content": "The 3rd."}]


def test_the_date_in_a_template_is_the_given_date(with_template):
    tokenizer, date = with_template(DATED), datetime.datetime(2001, 2, 3, 4, 5)
    text, spans = ChatTemplate(tokenizer, date).conversation(CHAT)
    # Except for the date, the text is that of transformers, including white space.
    now = datetime.datetime.now()
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    formats = ("%d %b %Y", "%Y-%m-%d, 100%% %A, %-H:%M")
    head = "\n  Today is {} {}\n".format(*(date.strftime(form) for form in formats))
    assert text.startswith(head)
    assert head == "\n  Today is 03 Feb 2001 2001-02-03, 100% Saturday, 4:05\n"
    assert text[len(head) :] == rendered.split("\n", 2)[2]
    assert [text[start:stop] for start, stop in spans] == ["The 3rd.<|im_end|>"]
    assert f"Today is {now:%d %b %Y} " in ChatTemplate(tokenizer).conversation(CHAT)[0]


def test_every_directive_of_the_date_is_the_library_s(with_template):
    date = datetime.datetime(2026, 11, 9, 16, 5, 6, tzinfo=datetime.timezone(datetime.timedelta(hours=2), "EET"))
    formats = [
        f"{flag}%{letter}|%%{letter}" for letter in "aAbBcdDeFgGhHIjkmMnprRStTuUVwWxXyYzZ" for flag in ("", "%-d ")
    ]
    template = (
        "{% for f in messages[0].content.split('#') %}[{{ strftime_now(f) }}]{% endfor %}"
        + "{% generation %}x{% endgeneration %}"
    )
    chat = [{"role": "assistant", "content": "#".join(formats)}]
    text, _ = ChatTemplate(with_template(template), date).conversation(chat)
    assert text == "".join(f"[{date.strftime(form)}]" for form in formats) + "x"


def test_a_corpus_rendered_on_another_day_with_the_same_date_is_the_same(with_template, tmp_path):
    path, tokenizer = write(tmp_path / "a.jsonl", [{"messages": CHAT}]), with_template(DATED)
    days = [datetime.datetime(2001, 2, day) for day in (3, 3, 4)]
    first, again, other = (
        load_corpus([path], tokenizer, 64, held_out_fraction=0, seed=0, date=day).fingerprint() for day in days
    )
    assert first == again != other
