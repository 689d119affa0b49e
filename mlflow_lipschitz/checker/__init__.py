"""The second program: re-proves certificates in NumPy, with its own meaning of every operator, sharing no bound code with engine/.

What is trusted is this folder, the description of graphs in engine/ir, and NumPy's sums and products. It runs without PyTorch.
"""
