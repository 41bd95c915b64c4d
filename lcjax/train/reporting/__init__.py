"""What a run says about itself: on the terminal, in its records and in pictures."""
