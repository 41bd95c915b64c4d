"""Reads files and folders, and data sets of the Hugging Face hub.

sources.py       the documents of all paths
files.py         finds files, decompresses and decodes them
tables.py        files of records, by suffix
lines.py         .jsonl, .json, .csv and .tsv
columns.py       .parquet, .arrow, and folders that `datasets` saved
repositories.py  repositories of code as one document each
hub.py           the files of a data set on the hub
"""
