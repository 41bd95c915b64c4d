"""`lcjax plan`: finds out whether a run fits a GPU by compiling it; no GPU is needed."""
