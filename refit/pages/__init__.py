"""The Models page: what `refit.publish` has written, as HTML (`plugins/refit_models.py` serves it in Airflow's UI).

`store` reads what is published, `models` is the list, `model` one pipeline, `frame` what all pages have. Standard
library only: Airflow's API server runs it.
"""
