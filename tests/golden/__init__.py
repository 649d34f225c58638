"""Values that transformers gave, with the script that asked it."""
