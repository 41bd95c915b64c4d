"""`lcjax push`: uploads a finished adapter or model to the Hugging Face hub.

arguments.py  the flags
files.py      what is uploaded, and whether it is complete
command.py    the upload, and its errors in one line
"""
