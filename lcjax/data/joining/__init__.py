"""Forms long documents from short ones that belong together.

chapters.py       the files of a folder, in natural order
order.py          the files of a repository, what is imported before what imports it
imports.py        which files a file imports, by its language
related.py        documents that share rare words, in groups of at most the length of a window
corpora.py        joins encoded documents
conversations.py  names conversations that are longer than a window
paths.py          finds the files that the name of a module may stand for
"""
