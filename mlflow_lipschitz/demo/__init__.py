"""The story of `mlflow-lipschitz demo`: two versions of one model, one policy, one of them may go to production."""
