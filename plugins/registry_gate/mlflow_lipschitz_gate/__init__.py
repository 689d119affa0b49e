"""A gate inside the MLflow server: protected aliases, stages and names open only to versions with a signed audit.

`app` and `auth_app` are what `mlflow server --app-name` loads. Everything else hangs on two seams below MLflow's routes: the
store that changes the registry (`doors`, `gated_store`) and the repositories that change files (`gated_files`). Whatever URL
a request came by, it ends there.
"""
