"""The parity harness's process for JAX: the implementations that it runs."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lcjax_scripts.verify.cases import AttentionShape, LongShape, RopeShape
from lcjax_scripts.verify.inputs import digest
from lcjax_scripts.verify.parity import run_jax
from lcjax_scripts.verify.parity.interpreter import mosaic
from lcjax_scripts.verify.parity.jobs import Job

JOB = Job("job", "a shape that Mosaic supports", AttentionShape(70, 2, 1, 64, dtype="bfloat16"))


def test_mosaic_is_interpreted_or_its_absence_explained():
    result = run_jax.run(JOB)
    assert result.digest == digest(JOB.inputs()[0])
    if jax.__version_info__ < mosaic.OLDEST_JAX:
        assert result.outcomes.keys() == {"pallas", "xla"}
        assert result.refused == {
            "mosaic": f"needs a Hopper GPU, or the interpreter of JAX 0.11.2 or later; this is {jax.__version__}"
        }
        return
    assert (result.outcomes.keys(), result.refused) == ({"pallas", "mosaic", "xla"}, {})
    found, expected = (result.outcomes[name] for name in ("mosaic", "xla"))
    assert not isinstance(found, str), found
    assert not isinstance(expected, str), expected
    assert found.keys() == expected.keys() == set(JOB.shape.tensors)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=0.05 * np.abs(x).max())


@pytest.mark.parametrize(
    "shape",
    [
        RopeShape(5, 2, 1, 8),
        LongShape(300, 2, 1, 64, of="rope"),
        LongShape(2**20, 1, 1, 64),
        AttentionShape(10**5, 1, 1, 64),
    ],
)
def test_what_is_too_long_to_interpret_or_is_not_attention(shape):
    names, absent = run_jax.implementations(Job("job", "a shape", shape))
    assert names == ("pallas", "xla")
    is_rope = isinstance(shape, RopeShape) or getattr(shape, "of", None) == "rope"
    assert absent.keys() == (set() if is_rope else {"mosaic"})
