"""The MLflow side of the evidence: pulling models without running their code, attesting, promoting."""
