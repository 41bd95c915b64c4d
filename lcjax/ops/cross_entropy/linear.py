"""Cross-entropy of a linear head without the [tokens, vocabulary] logits.

Shapes: N tokens (batch and sequence flattened), D hidden size, V vocabulary, C tokens per chunk.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

IGNORE = -100
"""The label of a token that carries no loss, as in PyTorch and Hugging Face."""


def chunk_tokens(vocab_size: int) -> int:
    """The default number of tokens per chunk.

    It is the number whose float32 logits fill 32 MiB. If that is less than 128, it is up to 256
    tokens whose logits fill at most 128 MiB.

    More than 32 MiB of logits do not fit a CPU's cache. A product with few rows spends its time
    reading the head. On an H200, with a vocabulary of 128,256, chunks of 128 take 1.35 times as
    long as chunks of 256, which take 1.08 times as long as chunks of 1,024.
    """
    fitting = 2**23 // vocab_size
    return fitting if fitting >= 128 else max(1, min(256, 2**25 // vocab_size))


def capped(logits: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(logits / cap)`, whose absolute value is below the cap; None is no cap.

    Source: Gemma 2, arXiv 2408.00118.
    """
    return logits if cap is None else cap * jnp.tanh(logits / cap)


class TokenScores(NamedTuple):
    """How well single tokens are predicted.

    Attributes:
      losses: float32, negative log-likelihoods in nats.
      hits: bool, whether no other token is more likely.
    """

    losses: jax.Array
    hits: jax.Array


def token_cross_entropy(
    hidden_ND: jax.Array, head_VD: jax.Array, labels_N: jax.Array, chunk: int | None = None, cap: float | None = None
) -> TokenScores:
    """`logsumexp(z_n) - z_n[label_n]` of every token, [N], with logits `z_n = capped(W h_n, cap)`.

    A token with the label IGNORE has loss 0 and hit False. These are the terms of
    `linear_cross_entropy`, computed in the same chunks. Use it for evaluation only: its derivative
    would save the logits of all chunks.
    """

    def chunk_scores(chunk):
        hidden_CD, labels_C = chunk
        return _chunk_scores(hidden_CD, head_VD, labels_C, cap)[0]

    scores_nC = lax.map(chunk_scores, _chunks(hidden_ND, labels_N, chunk or chunk_tokens(head_VD.shape[0])))
    return jax.tree.map(lambda x_nC: x_nC.reshape(-1)[: hidden_ND.shape[0]], scores_nC)


def linear_cross_entropy(
    hidden_ND: jax.Array, head_VD: jax.Array, labels_N: jax.Array, chunk: int | None = None, cap: float | None = None
) -> jax.Array:
    """`sum over n of logsumexp(z_n) - z_n[label_n]`, where the label is not IGNORE.

    The logits are `z_n = capped(W h_n, cap)`. Computes one chunk of tokens after another, so that
    only the logits of one chunk exist at a time. The gradient with respect to `hidden` is computed
    together with the value, so the backward pass repeats no product with the head. The gradient
    with respect to `head` is computed only if JAX differentiates with respect to it.

    Args:
      hidden_ND, head_VD: float32 or bfloat16, both of the same dtype; products accumulate in
        float32.
      labels_N: int32 in [0, V) or IGNORE.
      chunk: the largest number of tokens per chunk; the actual number makes all chunks equal. None
        means `chunk_tokens(V)`. Larger chunks take less time, and `chunk * V * 6` bytes of memory.
      cap: a limit of the logits, for models that were trained with one.

    Returns:
      float32 scalar, the sum in nats (not the mean: micro-batches of different sizes must add up).

    Source: Liger Kernel, arXiv 2410.10989, section 3.2 (fused linear cross-entropy).
    """
    return _linear_cross_entropy(hidden_ND, head_VD, labels_N, chunk or chunk_tokens(head_VD.shape[0]), cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _linear_cross_entropy(hidden_ND, head_VD, labels_N, chunk, cap):
    return token_cross_entropy(hidden_ND, head_VD, labels_N, chunk, cap).losses.sum()


def _forward(hidden_ND, head_VD, labels_N, chunk, cap):
    # With symbolic_zeros each argument tells whether it is differentiated: a frozen head costs
    # nothing.
    hidden, head, labels = hidden_ND.value, head_VD.value, labels_N.value
    hidden_nCD, labels_nC = _chunks(hidden, labels, chunk)
    dhead_start = jnp.zeros(head.shape, jnp.float32) if head_VD.perturbed else None

    def one_chunk(i, carry):
        total, dhead, hidden_nCD = carry
        hidden_CD, labels_C = hidden_nCD[i], labels_nC[i]
        scores_C, logits_CV, peak_C, log_total_C = _chunk_scores(hidden_CD, head, labels_C, cap)
        counted = (labels_C != IGNORE)[:, None]
        hit = jnp.arange(head.shape[0])[None, :] == labels_C[:, None]
        # Subtract the peak first. The difference of a large logit and a large log-sum-exp would
        # contain the rounding errors of both.
        dlogits_CV = jnp.exp(logits_CV - peak_C[:, None] - log_total_C[:, None]) - hit.astype(jnp.float32)
        if cap is not None:  # the derivative of `capped`
            dlogits_CV = dlogits_CV * (1 - jnp.square(logits_CV / cap))
        dlogits_CV = jnp.where(counted, dlogits_CV, 0.0).astype(head.dtype)
        dhidden_CD = jnp.dot(dlogits_CV, head)
        if dhead is not None:
            dhead = dhead + jnp.einsum("cv,cd->vd", dlogits_CV, hidden_CD, preferred_element_type=jnp.float32)
        # The gradient overwrites the hidden states of its own chunk.
        return total + scores_C.losses.sum(), dhead, hidden_nCD.at[i].set(dhidden_CD)

    start = jnp.float32(0), dhead_start, hidden_nCD
    total, dhead, dhidden_nCD = lax.fori_loop(0, len(hidden_nCD), one_chunk, start)
    dhidden_ND = dhidden_nCD.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return total, (dhidden_ND, dhead, head[:0])


def _backward(_chunk, _cap, residuals, dtotal):
    dhidden_ND, dhead_VD, head_like = residuals
    if dhead_VD is not None:
        dhead_VD = (dhead_VD * dtotal).astype(head_like.dtype)
    # Multiply in float32: rounding the factor to bfloat16 would scale the whole gradient.
    return (dhidden_ND.astype(jnp.float32) * dtotal).astype(dhidden_ND.dtype), dhead_VD, None


_linear_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunk_scores(hidden_CD, head_VD, labels_C, cap):
    logits_CV = capped(jnp.einsum("cd,vd->cv", hidden_CD, head_VD, preferred_element_type=jnp.float32), cap)
    peak_C = logits_CV.max(axis=-1)
    log_total_C = jnp.log(jnp.exp(logits_CV - peak_C[:, None]).sum(axis=-1))
    counted = labels_C != IGNORE
    label_logits = jnp.take_along_axis(logits_CV, jnp.where(counted, labels_C, 0)[:, None], axis=1)[:, 0]
    losses_C = log_total_C + (peak_C - label_logits)
    scores_C = TokenScores(jnp.where(counted, losses_C, 0.0), counted & (label_logits == peak_C))
    return scores_C, logits_CV, peak_C, log_total_C


def _chunks(hidden_ND, labels_N, most_tokens):
    """Equal chunks [n, C, D] and [n, C]; ignored tokens pad the last one."""
    tokens = hidden_ND.shape[0]
    count = -(-tokens // min(tokens, most_tokens))
    chunk = -(-tokens // count)
    missing = count * chunk - tokens
    if missing:
        hidden_ND = jnp.pad(hidden_ND, ((0, missing), (0, 0)))
        labels_N = jnp.pad(labels_N, (0, missing), constant_values=IGNORE)
    return hidden_ND.reshape(count, chunk, -1), labels_N.reshape(count, chunk)
