"""The command line: `__main__` parses, `commands` works on values, `output` and `progress` show."""
