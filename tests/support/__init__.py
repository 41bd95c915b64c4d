"""What tests share: oracles, shapes, small models, processes, readers of programs. No test is here."""
