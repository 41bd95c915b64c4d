"""Checks that two commits compute the same numbers, for refactorings."""
