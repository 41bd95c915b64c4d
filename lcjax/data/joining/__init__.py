"""Forms long documents from short ones that belong together.

order.py    the files of a repository, what is imported before what imports it
imports.py  which files a file imports, by its language
paths.py    finds the files that the name of a module may stand for
"""
