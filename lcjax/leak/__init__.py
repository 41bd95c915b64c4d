"""Whether packed documents see each other: other tokens in one must change no logit in another."""

from lcjax.leak.probe import LeakProbe, PackingLeak, refuse_leak

__all__ = ["LeakProbe", "PackingLeak", "refuse_leak"]
