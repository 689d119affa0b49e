"""Speed and tightness, printed as tables; nothing here asserts a time."""
