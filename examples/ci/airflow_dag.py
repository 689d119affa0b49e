"""An Airflow 3 DAG: audit a new version of a model, then let it become the champion. Copy into the folder of DAGs.

The promotion looks at the evidence again by itself; it would refuse also if this DAG called it after a blocked audit.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, task

VERSION = "models:/credit-scorer/{{ params.version }}"


@dag(schedule=None, catchup=False, params={"version": Param(type="integer", minimum=1)}, tags=["mlflow-lipschitz"])
def audited_release() -> None:
    """`version` is the number of the registered version."""

    # The template goes into the environment, never into the text of the command.
    @task.bash(env={"MODEL_URI": VERSION}, append_env=True, retries=0)
    def audit() -> str:
        return 'mlflow-lipschitz audit --policy "$POLICIES/credit-scorer.yaml" --data "$ROWS" -- "$MODEL_URI"'

    @task.bash(env={"MODEL_URI": VERSION}, append_env=True)
    def promote() -> str:
        return 'mlflow-lipschitz promote --policy "$POLICIES/credit-scorer.yaml" --alias champion -- "$MODEL_URI"'

    audit() >> promote()


audited_release()
