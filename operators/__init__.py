"""Airflow's side of Refit: operators, sensors, triggers and the DAG factory. No domain logic: that is in `refit`.

Every component of Airflow must be able to import this package (PYTHONPATH at the repository's root, or installed in
the image): the triggerer and the scheduler never look into DAG bundles.
"""
