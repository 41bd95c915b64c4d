"""Needle retrieval: a fact hidden in real text, and a question about it at the end.

Source: passkeys: Mohtashami & Jaggi, arXiv 2305.16300; key-value pairs: Liu et al., Lost in the
Middle, arXiv 2307.03172.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lcjax.errors import InputError
from lcjax.evaluate.excerpts import Excerpt, score
from lcjax.model import Llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TASKS = ("passkey", "key-value")
# The pair in question and three others, at other depths, that could be confused with it.
_PAIRS = 4
_FIRST_WORDS = "amber brave calm dusty early fancy gentle hollow icy jolly keen lively merry noble".split()
_SECOND_WORDS = (
    "falcon garden harbor island jacket kettle ladder mirror needle orchid pillow quarry river saddle".split()
)


class Cell(NamedTuple):
    """How often an answer was retrieved at one length and depth.

    `retrieved` is the share of samples in which every token of the answer was the most likely one,
    that is, which greedy decoding answers correctly. `loss` is in nats per token of the answer.
    Depth 0 is the beginning of the text, 1 its end.
    """

    task: str
    length: int
    depth: float
    samples: int
    retrieved: float
    loss: float


class _Hidden(NamedTuple):
    """Sentences to hide, each with its depth in [0, 1]; the question; the answer."""

    sentences: list[tuple[float, str]]
    question: str
    answer: str


def needles(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    haystack: Callable[[int, np.random.Generator], np.ndarray],
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    samples: int,
    seed: int,
    on_row: Callable[[float], None] = lambda share: None,
) -> list[Cell]:
    """Retrieval of both tasks at every length and depth.

    An answer is scored after its question in one forward pass: greedy decoding would produce it
    exactly if each of its tokens is the most likely one after those before it.

    Args:
      haystack: returns the given number of tokens of real text, int32, which depend on the
        generator's state.
      lengths: tokens of text, needles, question and answer together.
      samples: of each cell, each with a different text and answer, which depend only on the seed.

    Raises:
      InputError: the needles do not fit into a length.
    """
    cells = [(task, length, depth) for task in TASKS for length in lengths for depth in depths]
    excerpts = [
        excerpt_of(tokenizer, haystack, task, length, depth, np.random.default_rng([seed, number, sample]))
        for number, (task, length, depth) in enumerate(cells)
        for sample in range(samples)
    ]
    scores = score(model, excerpts, max(lengths), on_row)
    sizes_N = np.array([len(excerpt.targets) for excerpt in excerpts])
    retrieved_NS = (scores.hits_N == sizes_N).reshape(-1, samples)
    losses_NS = (scores.losses_N / sizes_N).reshape(-1, samples)
    return [
        Cell(*cell, samples, float(retrieved_S.mean()), float(losses_S.mean()))
        for cell, retrieved_S, losses_S in zip(cells, retrieved_NS, losses_NS, strict=True)
    ]


def check_needles(
    tokenizer, haystack: Callable[[int, np.random.Generator], np.ndarray], lengths: Sequence[int]
) -> None:
    """Raises InputError if the text is too short for a length, or a length for its needles."""
    for task in TASKS:
        for length in (min(lengths), max(lengths)):
            excerpt_of(tokenizer, haystack, task, length, 0.0, np.random.default_rng(0))


def excerpt_of(tokenizer, haystack, task: str, length: int, depth: float, rng: np.random.Generator) -> Excerpt:
    hidden = _passkey(depth, rng) if task == "passkey" else _key_value(depth, rng)
    encoded = [(at, _ids(tokenizer, sentence)) for at, sentence in hidden.sentences]
    question, answer = _ids(tokenizer, hidden.question), _ids(tokenizer, hidden.answer)
    space = length - len(question) - len(answer) + 1 - sum(len(ids) for _, ids in encoded)
    if space < 0:
        raise InputError(f"needles and question take {length - space:,} tokens of {length:,}; raise --max-seq-length")
    text = haystack(space, rng)
    parts, begin = [], 0
    for at, ids in sorted(encoded, key=lambda pair: pair[0]):
        stop = round(at * len(text))
        parts += [text[begin:stop], ids]
        begin = stop
    return Excerpt(np.concatenate([*parts, text[begin:], question, answer[:-1]]), answer)


def _passkey(depth: float, rng: np.random.Generator) -> _Hidden:
    key = _number(rng)
    sentence = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    return _Hidden([(depth, sentence)], "\nWhat is the pass key? The pass key is", f" {key}")


def _key_value(depth: float, rng: np.random.Generator) -> _Hidden:
    # Drawn without replacement, so that no two keys share a word.
    words = zip(rng.permutation(_FIRST_WORDS)[:_PAIRS], rng.permutation(_SECOND_WORDS)[:_PAIRS], strict=True)
    keys, values = [f"{first}-{second}" for first, second in words], [_number(rng) for _ in range(_PAIRS)]
    # The others are spread evenly over the text, regardless of the depth of the pair in question.
    depths = [depth, *((n + 0.5) / (_PAIRS - 1) for n in range(_PAIRS - 1))]
    sentences = [f"\nThe value of {key} is {value}.\n" for key, value in zip(keys, values, strict=True)]
    return _Hidden(list(zip(depths, sentences, strict=True)), f"\nThe value of {keys[0]} is", f" {values[0]}")


def _number(rng: np.random.Generator) -> int:
    return int(rng.integers(10_000, 100_000))


def _ids(tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
