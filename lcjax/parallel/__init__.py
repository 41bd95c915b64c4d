"""Where arrays are, and which process does what: the one owner of devices, memories and processes.

placement.py   on which device an array is
memories.py    in which of a device's memories: its own, or pinned host memory
processes.py   which process writes what all need once

With one device and one process nothing of this changes a number.
"""
