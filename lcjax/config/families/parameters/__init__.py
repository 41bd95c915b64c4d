"""The tables of parameters: the names, shapes and axes of all weights of a model.

row.py      a row of a table, and the logical axes
norms.py    which norms a layer has
common.py   rows that tables are composed of
decoder.py  the table that most families share
"""
