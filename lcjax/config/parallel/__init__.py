"""How a run is divided: over devices (mesh.py) and over processes (cluster.py)."""
