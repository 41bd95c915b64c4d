"""Batches in a shuffled, endless and resumable order, made with grain.

Every batch is a function of its index. So the state of an iterator is the next index and nothing
else. Legend: A = accumulation, B = batch_size, T = max_seq_length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import grain
import numpy as np

from lcjax.data.mixture import Mixture
from lcjax.data.packing import PackingPlan
from lcjax.data.rows import NO_ROW, Batch, lay_out
from lcjax.data.tokens import TokenizedCorpus
from lcjax.errors import InputError

# One thread prepares the next batches while the device computes. grain's default of 500 threads
# would need gigabytes here.
_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def make_dataset(
    corpus: TokenizedCorpus,
    plan: PackingPlan,
    *,
    batch_size: int,
    accumulation: int = 1,
    seed: int,
    mixture: Mixture | None = None,
) -> grain.MapDataset[Batch]:
    """An endless dataset of batches with random access: `dataset[i]` belongs to optimizer step i.

    Every epoch visits all rows once, in a new order drawn from the seed. A batch that the last rows
    of an epoch do not fill is completed with rows of the next epoch, so no row is dropped. In a
    mixture every source has its own epochs, and the weights decide which source the next row comes
    from.

    Args:
      batch_size: B, rows that are on the device at once.
      accumulation: A, batches that make one optimizer step.
      seed: 0, ..., 2^32 - 1.
      mixture: sources and their weights; None treats all rows as one source.

    Returns:
      a dataset of `Batch` with arrays of shape [A, B, T] (rows: [A, B]).

    Raises:
      InputError: a size or the seed is out of range, or the plan has no rows.
    """
    for name, value in (("batch_size", batch_size), ("accumulation", accumulation)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} must be at least 0 and below 2^32")
    if not len(plan):
        raise InputError("no tokens are left to train on; add documents")
    bounds = (0, len(plan)) if mixture is None else mixture.row_bounds
    # grain shuffles epoch e by seed + e. With the seed itself, epoch 1 of seed 0 would equal epoch
    # 0 of seed 1.
    seeds = np.random.SeedSequence(seed).generate_state(len(bounds) - 1).tolist()
    sources = [
        grain.MapDataset.range(start, stop).shuffle(seed=mixed_seed).repeat()
        for (start, stop), mixed_seed in zip(itertools.pairwise(bounds), seeds, strict=True)
    ]
    rows = sources[0] if mixture is None else grain.MapDataset.select_from_datasets(sources, mixture.selection())
    # To grain, endless means sys.maxsize rows. It rounds up, and for batches of one row the result
    # exceeds the maximum length.
    steps = rows.batch(accumulation * batch_size, drop_remainder=True)
    return steps.map(lambda flat: lay_out(corpus, plan, np.reshape(flat, (accumulation, batch_size))))


def iterate(dataset: grain.MapDataset[Batch]) -> grain.DatasetIterator[Batch]:
    """Iterates over a dataset while a thread prepares the next batches.

    `get_state()` returns a small dictionary that JSON can represent. After `set_state()` with it,
    an iterator over a dataset made in the same way continues with exactly the next batch. Batches
    that were prefetched but not taken do not count.
    """
    return iter(dataset.to_iter_dataset(_READ_OPTIONS))


def evaluation_batches(
    corpus: TokenizedCorpus, plan: PackingPlan, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """The rows of a plan once, in its order, in batches of one shape.

    Args:
      batch_size: B; the last batch is filled with rows of padding, whose labels are all IGNORE.
      limit: the most batches, with rows spread evenly over the plan (which begins with the longest
        documents); None for all.

    Returns:
      an iterator of `Batch` with arrays of shape [B, T] (rows: [B], NO_ROW for padding).

    Raises:
      InputError: batch_size or limit is less than 1.
    """
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} of the evaluation must be at least 1")
    count = len(plan) if limit is None else min(len(plan), limit * batch_size)
    rows = np.arange(count) * len(plan) // max(count, 1)
    rows = np.pad(rows, (0, -count % batch_size), constant_values=NO_ROW)
    return (lay_out(corpus, plan, rows_B) for rows_B in rows.reshape(-1, batch_size))
