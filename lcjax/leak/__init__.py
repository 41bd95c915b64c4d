"""Checks that packed documents do not see each other.

Other tokens in one document must change no logit in another.
"""

from typing import TYPE_CHECKING

from lcjax.lazy import lazily

if TYPE_CHECKING:
    from lcjax.leak.probe import LeakProbe, PackingLeak, refuse_leak

__all__ = ["LeakProbe", "PackingLeak", "refuse_leak"]

__getattr__ = lazily(__name__, dict.fromkeys(__all__, "lcjax.leak.probe"))
