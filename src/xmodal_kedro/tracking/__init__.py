"""MLflow: one parent run per kedro run, one child per member."""
