"""Placement of arrays and roles of processes: the one owner of devices and memories.

devices.py       the mesh of a run's devices, and which part of the arrays each has
collectives.py   sums and maxima over a mesh
placement.py     which device an array is on
memories.py      which memory of a device it is in: the device's own, or pinned host memory
distributed.py   joins the processes of a run on several hosts
processes.py     which process writes files, and how processes agree

With one device and one process, none of this changes a number.
"""
