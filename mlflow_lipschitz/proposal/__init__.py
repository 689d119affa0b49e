"""`policy init`: a policy for a registered model whose every number was measured, and says where it comes from.

Read `proposing.py` first. A proposal is no judgment: which properties a model has to have is for its owner to decide.
"""
