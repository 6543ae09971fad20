"""`refit.embedded` may not import `operators`; what it repeats of it is held equal here."""

import json

from operators import bundle, names
from refit.embedded import airflow, follow
from refit.embedded.settings import Embedded


def test_the_bundle_is_the_one_that_operators_name(tmp_path):
    place = Embedded.from_env({"REFIT_HOME": str(tmp_path)})
    written = airflow.configuration(place)["dag_processor"]["dag_bundle_config_list"]
    assert json.loads(written) == json.loads(bundle.config(place.refit.repository, airflow.REFRESH_SECONDS))


def test_the_words_are_the_same():
    assert (follow.ARRIVAL, follow.BIND, follow.DAG_PREFIX) == (names.ARRIVAL, names.BIND, names.DAG_PREFIX)
