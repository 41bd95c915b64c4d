"""README.md of an adapter or a model, as hubs show it.

card.py   the text: front matter, figures of the training, how to load it
names.py  the base model's name, without what is private in a path
"""
