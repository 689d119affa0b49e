"""The product inside MLflow: an evaluator for `mlflow.evaluate`, and how an audit is written into a tracking store."""
