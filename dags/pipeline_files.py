"""Holds no DAG: while a pipeline file is faulty, this one fails to import, and Airflow shows all faults together.

The good files' DAGs come from retrain.py. Airflow keeps one import error per file and switches off every DAG of a
file that has one, so the two must not be the same file.
"""

from operators import factory

problems = factory.problems()
if problems:
    raise factory.BadPipelineFiles(problems)
