"""Reading model files that can carry code, without running any of it."""
