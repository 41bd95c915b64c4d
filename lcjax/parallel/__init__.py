"""Placement of arrays and roles of processes: the one owner of devices and memories.

devices.py       the mesh of a run's devices, and which part of the arrays each has
collectives.py   sums and maxima over a mesh
placement.py     which device an array is on
memories.py      which memory of a device it is in: the device's own, or pinned host memory
distributed.py   joins the processes of a run on several hosts
processes.py     which process writes files, and how processes agree
loading.py       the rows of the weights that a process reads, and their place on its devices
weights.py       weights that devices share: each has some rows of every matrix
host_blocks.py   blocks of arrays on the host, wherever their parts are

With one device and one process, none of this changes a number.
"""
