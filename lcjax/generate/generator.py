"""Generation: the prompt in chunks, then one compiled step per token, on all devices.

Shapes: B batch (1), C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcjax.config.rope import is_beyond_original
from lcjax.errors import InputError
from lcjax.generate.cache import KVCache, extend
from lcjax.generate.next_token import next_token
from lcjax.generate.sampling import Sampling
from lcjax.model import Llama
from lcjax.model.ids import check_ids
from lcjax.parallel.devices import WHOLE, Devices
from lcjax.parallel.weights import specs_of
from lcjax.step.on_devices import by_heads_on_all_devices

# A prompt is processed in chunks of the first size, and its remainder in chunks of the second, the
# last one padded. So two programs serve prompts of any length. They need no more memory than a
# chunk's, and a short prompt does not pay for a long one.
CHUNKS = (2048, 64)


def check_length(prompt: Sequence[int], capacity: int) -> None:
    """Raises InputError if a prompt has more tokens than the cache."""
    if len(prompt) > capacity:
        raise InputError(
            f"a prompt of {len(prompt):,} tokens does not fit into the {capacity:,} of "
            "--max-seq-length; raise it, or shorten the prompt"
        )


class Generator:
    """A model and the cache of one sequence, on all devices of this process.

    Tokens that are already in the cache are not recomputed: for a prompt that begins like the last
    one, such as a continued conversation, only the new tokens are computed.
    """

    def __init__(self, model: Llama, capacity: int):
        """`capacity`: tokens of prompt and continuation together.

        Raises:
          InputError: capacity is not positive.
        """
        if capacity < 1:
            raise InputError(f"a capacity of {capacity} tokens is too small; use 1 or more")
        self.capacity = capacity
        self._model, self._devices = by_heads_on_all_devices(model)
        # A chunk is written including its padding; only the smallest chunks are padded.
        self._cache = KVCache.empty(self._model, capacity + min(CHUNKS), devices=self._devices)
        self._logits_BV: jax.Array | None = None
        self._ids: list[int] = []
        self._has_long_keys: bool | None = False  # None if keys of both kinds are in the cache

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        stop: Container[int] = (),
        seed: int = 0,
        on_prefill: Callable[[int], None] = lambda done: None,
    ) -> Iterator[int]:
        """The tokens that follow `prompt`, yielded one by one.

        Ends after a token in `stop` (which is yielded, too), after `max_new_tokens`, or when the
        cache is full. The same seed gives the same tokens.

        Args:
          on_prefill: called after every chunk with the number of prompt tokens processed so far.

        Raises:
          InputError: the prompt is empty or longer than the cache, an id is outside the vocabulary,
            or logits are not finite.
        """
        self._prefill(list(prompt), on_prefill)
        key = jax.random.key(seed)
        for _ in range(min(max_new_tokens, self.capacity - len(prompt))):
            if self._has_long_keys is None:
                self._prefill(self._ids, lambda done: None)
            assert self._logits_BV is not None
            token_B, self._logits_BV, self._cache = decode_token(
                self._devices, sampling, self._model, self._cache, self._logits_BV, key
            )
            token = int(token_B[0])
            if token < 0:
                raise InputError(
                    f"the model's logits after {len(self._ids):,} tokens are NaN or infinite, "
                    "because of its weights, the adapter or the range of bfloat16; try --dtype "
                    "float32, or the model without the adapter"
                )
            self._ids.append(token)
            if is_beyond_original(self._model.config, len(self._ids)) and not self._has_long_keys:
                self._has_long_keys = None
            yield token
            if token in stop:
                return

    def _prefill(self, prompt: list[int], on_prefill: Callable[[int], None]) -> None:
        """Fills the cache with exactly the prompt, and sets the logits that follow it."""
        if not prompt:
            raise InputError("the prompt is empty; give at least one token of text")
        check_length(prompt, self.capacity)
        check_ids(np.asarray(prompt), self._model.config.vocab_size)
        # The last token is always recomputed, because its logits are needed. All are if RoPE has
        # other frequencies for this length than for the keys in the cache.
        needs_long_keys = is_beyond_original(self._model.config, len(prompt))
        common = min(_common(self._ids, prompt), len(prompt) - 1) if needs_long_keys == self._has_long_keys else 0
        self._has_long_keys, self._cache = needs_long_keys, self._cache.up_to(common)
        done = int(self._cache.length)
        self._ids = prompt[:done]
        while done < len(prompt):
            left = len(prompt) - done
            size = next((size for size in CHUNKS if size <= left), min(CHUNKS))
            ids = prompt[done : done + size]
            tokens_BC = np.array([ids + [0] * (size - len(ids))], np.int32)
            self._logits_BV, self._cache = read_chunk(
                self._devices, self._model, self._cache, tokens_BC, jnp.int32(len(ids)), jnp.int32(len(prompt))
            )
            self._ids += ids
            done += len(ids)
            on_prefill(done)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="cache")
def read_chunk(
    devices: Devices,
    model: Llama,
    cache: KVCache,
    tokens_BC: jax.Array,
    count: jax.Array,
    sequence_length: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """(logits [B, V] after the last valid token, cache), for a chunk of a prompt.

    The prompt has `sequence_length` tokens.
    """

    def read(model, cache, tokens_BC, count, sequence_length):
        hidden_BCD, cache = extend(model, cache, tokens_BC, count, sequence_length)
        return _logits_at(model, hidden_BCD, count - 1), cache

    arguments = model, cache, tokens_BC, count, sequence_length
    return _over(devices, read, model, cache, 3)(*arguments)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames=("cache", "logits_BV"))
def decode_token(
    devices: Devices, sampling: Sampling, model: Llama, cache: KVCache, logits_BV: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, KVCache]:
    """(chosen token [B], -1 if logits are not finite; the logits after it [B, V]; cache)."""
    token_B = next_token(sampling, logits_BV, jax.random.fold_in(key, cache.length))
    token_B = jnp.where(jnp.isfinite(logits_BV).all(axis=-1), token_B, -1)

    def read(model, cache, token_B):
        hidden_B1D, cache = extend(model, cache, token_B[:, None], 1)
        return _logits_at(model, hidden_B1D, 0), cache

    return token_B, *_over(devices, read, model, cache, 1)(model, cache, token_B)


def _over(devices: Devices, read: Callable[..., Any], model: Llama, cache: KVCache, others: int) -> Callable[..., Any]:
    """`read(model, cache, *others)` on all devices, which have different heads in the cache."""
    parts = specs_of(devices.shape, model), cache.parts(), *[WHOLE] * others
    return devices.over(read, parts, (WHOLE, cache.parts()))


def _logits_at(model: Llama, hidden_BCD: jax.Array, index: int | jax.Array) -> jax.Array:
    return model.logits(jax.lax.dynamic_slice_in_dim(hidden_BCD, index, 1, axis=1))[:, 0]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of equal leading tokens."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
