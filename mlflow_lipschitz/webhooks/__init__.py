"""`serve`: a receiver of MLflow's webhooks that audits new versions and takes back aliases that no audit vouches for."""
