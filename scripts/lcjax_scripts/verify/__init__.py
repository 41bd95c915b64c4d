"""Numerical checks: the tolerance rule, cases, mutants, parity, and comparing two commits."""
