"""The command line: one file a verb, which parses its arguments and hands on; `main` is the table of verbs."""
