"""How far a program that computes in float32, bfloat16 or float16 may be from the exact function: forward error analysis."""
