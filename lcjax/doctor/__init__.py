"""python -m lcjax.doctor: what a specialist would ask before a long run, and the command that follows from the answers.

findings.py       a question, its answer, and the flags that it asks for
rope.py           is the length beyond the trained context?
memory.py         does it fit the GPU, and with what policy?
documents.py      do the documents justify the length, and how many tokens make a step?
train_command.py  the lcjax.train command that follows
"""
