"""lcjax doctor: checks before a long run, and the resulting lcjax.train command.

findings.py       a question, its answer, and the flags that it requires
rope.py           is the length beyond the trained context?
memory.py         does it fit the GPU, and with what policy?
documents.py      do the documents justify the length, and how many tokens make a step?
train_command.py  the resulting lcjax.train command
"""
