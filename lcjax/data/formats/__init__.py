"""Forms of records, and how each becomes the text of a document.

records.py   which form a record has, and its document
messages.py  conversations: OpenAI's messages, ShareGPT's conversations, tools
mapping.py   the columns that stand for the fields of a form
chat.py      the text of a conversation, and the assistant's turns in it
dates.py     the date that a chat template writes
"""
