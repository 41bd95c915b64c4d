"""The compiled programs of a run, which whoever goes on with it computes with."""
