"""Changes Triton's interpreter to round like a GPU and to run faster."""
