"""What stands behind the command line: the text of a run file, and the verbs that need more than a line."""
