"""Code shared by all commands.

entry.py            exit codes, and one-line errors
flags.py            parsing of flags
config_file.py      files of settings, for --config
help.py             the help that shows them
model_arguments.py  flags that select a model
model_loading.py    loading of that model
outputs.py          checking and writing of output files
terminal.py         what is printed on the terminal
native_log.py       redirection of what C++ libraries print
signals.py          Ctrl-C and SIGTERM
startup.py          the start and the end of a program
"""
