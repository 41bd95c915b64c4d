"""What holds the numbers: the tolerance rule, cases, mutants, the parity harness and the comparison of commits."""
