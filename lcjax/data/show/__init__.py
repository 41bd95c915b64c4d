"""`lcjax data show`: packed rows as text, with what is learned marked.

arguments.py  flags
command.py    reads the data and prints
texts.py      the text of tokens, in spans that are learned or not, without control characters
report.py     what is printed of a row and of the whole data
"""
