"""What all commands share.

entry.py            exit codes, and an error in one line
flags.py            reading flags; model_arguments.py those that name a model
outputs.py          where results go
terminal.py         what reaches the terminal; native_log.py what libraries in C++ write
signals.py          Ctrl-C and SIGTERM; startup.py a program's first and last moments
"""
