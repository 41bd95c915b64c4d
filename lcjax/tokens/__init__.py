"""lcjax tokens: how long the documents are, and how they fill windows of a length."""
