"""What Airflow makes of the pipeline files: the real DAG processor's bag over the repository's own bundle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import yaml
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.dag_processing.importers import get_importer_registry
from airflow.sdk import DAG, CronTriggerTimetable
from airflow.sdk.definitions.context import Context
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from operators import factory, inputs, names, pools, texts
from refit import pipeline as pipelines
from refit import plan as plans
from refit.config import Settings
from refit.toolkits.cpu import CpuPipeline
from refit.toolkits.tao.model import TaoPipeline
from tests.operators.home import REPOSITORY
from tests.operators.pipelines import write_pipeline

RETRAIN, REPORT = "dags/retrain.py", "dags/pipeline_files.py"
HOSTILE = "{{ 1/0 }} {% raw %} [x](javascript:alert(1)) <b>b</b> ![i](http://h/i.png) `c` | /etc/hostname.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of pipeline files, and everything else of an installation below tmp_path."""
    (tmp_path / "pipelines").mkdir()
    for name in ("PIPELINES", "WORKSPACE", "DATA_ROOTS"):
        monkeypatch.setenv(f"REFIT_{name}", str(tmp_path / name.lower()))
    return tmp_path / "pipelines"


def bag() -> BundleDagBag:
    return BundleDagBag(REPOSITORY, bundle_path=REPOSITORY, bundle_name="refit")


def only_dag(folder: Path, name: str = "p") -> DAG:
    (made,) = factory.make(Settings.from_env(), only=name)
    assert made.problems == ()
    assert made.dag is not None
    return made.dag


def test_the_repositorys_own_pipelines_load() -> None:
    loaded = bag()
    assert loaded.import_errors == {}
    assert loaded.captured_warnings == {}
    files = pipelines.files(Settings.from_env().pipelines)
    by_hand = {"refit_predict", "refit_reconcile", "refit_rollback"}
    assert set(loaded.dags) == {f"retrain_{f.stem}" for f in files} | by_hand


def test_only_the_dags_folder_is_searched() -> None:
    found = get_importer_registry().list_dag_files(REPOSITORY, safe_mode=True)
    assert {str(Path(f).relative_to(REPOSITORY)) for f in found} >= {RETRAIN, REPORT}
    assert {Path(f).parent for f in found} == {REPOSITORY / "dags"}


def test_the_shape_of_a_dag(folder: Path) -> None:
    write_pipeline(folder / "p.yaml", "stages: {augment: {copies: 1}}", "schedule: '30 4 * * 1'")
    dag = only_dag(folder)
    assert (dag.dag_id, dag.catchup, dag.max_active_runs) == ("retrain_p", False, 1)
    assert isinstance(dag.schedule, CronTriggerTimetable)
    assert (dag.schedule.expression, dag.schedule.timezone) == ("30 4 * * 1", "UTC")
    assert dag.tags == {"refit", "p", "cpu"}
    nodes = plans.skeleton(pipelines.load(folder / "p.yaml"))
    stages = [names.task_id(n.name, n.group) for n in nodes]
    assert [t.task_id for t in dag.tasks] == ["arrival", "bind", *stages, "publish", "done"]
    assert stages[-1] == "release"
    assert dag.get_task("bind").upstream_task_ids == {"arrival"}
    for node in nodes:
        task = dag.get_task(names.task_id(node.name, node.group))
        groups = {n.name: n.group for n in nodes}
        assert task.upstream_task_ids == {"bind", *(names.task_id(u, groups[u]) for u in node.upstream)}
        assert task.trigger_rule == "none_failed_min_one_success"
        assert task.retries == 2
        assert (task.task_display_name, task.pool) == (node.title, pools.LOCAL)
    for model in ("train", "retrain", "quantize"):
        evaluation = {"quantize": "quantized"}.get(model, f"{model}ed")
        assert f"stages.{model}" in dag.get_task(f"stages.evaluate_{evaluation}").upstream_task_ids
    done = dag.get_task("done")
    assert (dag.leaves, done.upstream_task_ids) == ([done], {"bind", *stages, "publish"})
    publish = dag.get_task("publish")
    assert (publish.upstream_task_ids, publish.trigger_rule) == ({"bind", *stages}, "all_done")
    assert publish.pool == "default_pool"  # it must not wait behind a training
    assert (done.trigger_rule, done.inherits_from_empty_operator) == ("none_failed", True)


def test_every_pool_is_one_that_set_up_makes() -> None:
    known = {"default_pool", *(p.name for p in pools.required())}
    assert {t.pool for dag in bag().dags.values() for t in dag.tasks} <= known


# ---- faulty files


def test_a_faulty_file_breaks_its_own_dag_only(folder: Path) -> None:
    write_pipeline(folder / "good.yaml", "schedule: on_arrival")
    write_pipeline(folder / "typo.yaml", "", "sed: 1", "runtim: local")
    write_pipeline(folder / "never.yaml", "schedule: '0 0 31 2 *'")
    write_pipeline(folder / "nocron.yaml", "schedule: '99 0 * * *'")
    write_pipeline(folder / "outside.yaml", "schedule: on_arrival", source="/etc")
    write_pipeline(folder / "Bad Name.yaml")
    write_pipeline(folder / "good.yml")
    (folder / "torn.yaml").write_text("dataset: {source: a\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    loaded = bag()
    assert set(loaded.import_errors) == {REPORT}  # an error of retrain.py would switch off the good DAG too
    text = loaded.import_errors[REPORT]
    assert "8 pipeline files cannot be used; all others are loaded" in text
    for line in (
        "typo.yaml:4: sed: unknown key; did you mean 'seed'?",
        "typo.yaml:5: runtim: unknown key; did you mean 'runtime'?",
        "never.yaml:3: schedule: '0 0 31 2 *' is no time that comes",
        "nocron.yaml:3: schedule: '99 0 * * *' is no time that comes",
        "outside.yaml:1: dataset.source '/etc' is outside the allowed data roots",
        "Bad Name.yaml:1: ",
        "good.yml:1: good.yaml and good.yml stand for the same pipeline",
        "torn.yaml:2: ",
        "binary.yaml: cannot be read: not UTF-8 text",
    ):
        assert line in text
    assert len(loaded.dags["retrain_good"].tasks) > 5
    stand_ins = {dag_id for dag_id, dag in loaded.dags.items() if names.BAD_FILE_TAG in dag.tags}
    faulty = ("typo", "never", "nocron", "outside", "torn", "binary")
    assert stand_ins == {f"retrain_{name}" for name in faulty}
    for dag_id in stand_ins:
        dag = loaded.dags[dag_id]
        assert [t.task_id for t in dag.tasks] == [names.BAD_FILE]
        assert (dag.schedule, dag.max_active_runs) == (None, 1)
    assert "sed" in str(loaded.dags["retrain_typo"].doc_md)


def test_a_fault_nobody_thought_of_stays_with_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(folder / "a.yaml")
    write_pipeline(folder / "b.yaml")
    real = plans.skeleton

    def broken(pipeline: pipelines.Pipeline) -> list[plans.Node]:
        if pipeline.name == "a":
            raise KeyError("surprise")
        return real(pipeline)

    monkeypatch.setattr(plans, "skeleton", broken)
    loaded = bag()
    assert set(loaded.import_errors) == {REPORT}
    assert "a.yaml:1: cannot be made into a DAG: KeyError: 'surprise'" in loaded.import_errors[REPORT]
    assert len(loaded.dags["retrain_b"].tasks) > 5


def test_a_missing_folder_is_reported(folder: Path) -> None:
    folder.rmdir()
    loaded = bag()
    assert set(loaded.import_errors) == {REPORT}
    assert "set REFIT_PIPELINES" in loaded.import_errors[REPORT]
    assert loaded.dags == {}


# ---- what a task's process sees

IN_A_TASK = """
import json, os, sys
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
root, before, out = Path(sys.argv[1]), set(sys.modules), []
for dag_id, task_id in json.loads(sys.argv[2]):
    for name in [n for n in os.environ if "PARSING_CONTEXT" in n]:
        del os.environ[name]  # Airflow leaves it set: a process runs one task
    with _airflow_parsing_context_manager(dag_id=dag_id, task_id=task_id):
        bag = BundleDagBag(root / "dags" / "retrain.py", safe_mode=False, bundle_path=root, bundle_name="refit")
    tasks = {d: {t.task_id: type(t).__name__ for t in dag.tasks} for d, dag in bag.dags.items()}
    new = sorted(set(sys.modules) - before)
    out.append({"tasks": tasks, "errors": bag.import_errors, "new": new, "all": sorted(sys.modules)})
print("ANSWER" + json.dumps(out))
"""
TASKS = {
    "arrival": "DatasetArrivalSensor",
    "bind": "BindOperator",
    "stages.train": "LocalStageOperator",
    "release": "LocalStageOperator",
    "publish": "PublishOperator",
    "done": "EmptyOperator",
    names.BAD_FILE: "BadFileOperator",
}


def in_processes_of_tasks(*cases: tuple[str, str | None]) -> list[dict]:
    """Parse dags/retrain.py as the processes of these (DAG, task) do, one after the other in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_TASK, str(REPOSITORY), json.dumps(cases)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    answers: list[dict] = json.loads(done.stdout.rpartition("ANSWER")[2])
    assert all(a["errors"] == {} for a in answers)
    return answers


def test_a_task_process_makes_its_own_task_only(folder: Path) -> None:
    write_pipeline(folder / "p.yaml", "schedule: on_arrival")
    write_pipeline(folder / "other.yaml")
    (folder / "torn.yaml").write_text("stages: [")
    mine, torn, gone, foreign, whole = in_processes_of_tasks(
        ("retrain_p", "stages.train"),
        ("retrain_torn", "stages.train"),
        ("retrain_gone", "stages.train"),
        ("somebody_elses", "stages.train"),
        ("retrain_p", None),  # a DAG without a task: callbacks
    )
    assert mine["tasks"] == {"retrain_p": {"stages.train": "LocalStageOperator"}}
    assert torn["tasks"] == {"retrain_torn": {"stages.train": "LocalStageOperator"}}
    assert gone["tasks"] == {"retrain_gone": {"stages.train": "LocalStageOperator"}}
    assert foreign["tasks"] == {}
    assert list(whole["tasks"]) == ["retrain_p"]
    assert len(whole["tasks"]["retrain_p"]) > 5
    # A stage's process starts without the models of pipeline files; no process needs anything heavy.
    assert not {"refit.plan", "refit.pipeline", "croniter"} & set(gone["new"])
    assert not {"torch", "pandas", "numpy", "kubernetes", "cv2", "onnx"} & set(whole["all"])


def test_pods_need_no_kubernetes_client_while_airflow_parses(folder: Path) -> None:
    write_pipeline(folder / "p.yaml", "runtime: kubernetes")
    whole, task, bind, publish = in_processes_of_tasks(
        *(("retrain_p", name) for name in (None, "stages.train", "bind", "publish"))
    )
    assert whole["tasks"]["retrain_p"]["stages.train"] == "PodTask"
    assert not {"kubernetes", "kubernetes_asyncio", "torch", "pandas", "numpy"} & set(whole["all"])
    assert task["tasks"] == {"retrain_p": {"stages.train": "TaoStageOperator"}}
    assert bind["tasks"] == {"retrain_p": {"bind": "BindPodOperator"}}
    assert publish["tasks"] == {"retrain_p": {"publish": "PublishPodOperator"}}


def test_shares_of_a_data_set_are_a_mapped_task_before_bind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(folder / "p.yaml", "runtime: kubernetes", source="inbox, shards: 3")
    made = only_dag(folder)
    dag = DagSerialization.from_dict(DagSerialization.to_dict(made))  # what the scheduler gets
    look = dag.get_task("look")
    assert (look.is_mapped, look.pool, look.retries) == (True, pools.PODS, 2)
    assert look.get_parse_time_mapped_ti_count() == 3
    assert (look.upstream_task_ids, look.downstream_task_ids) == ({"arrival"}, {"bind"})
    (own,) = in_processes_of_tasks(("retrain_p", "look"))
    assert own["tasks"] == {"retrain_p": {"look": "LookPodOperator"}}

    look = factory.task_dag("p", "look").get_task("look")
    ti = SimpleNamespace(id="0", map_index=2)
    context = {"ti": ti, "run_id": "r1", "dag_run": SimpleNamespace(conf={})}
    _, stage = look.planned(context)  # type: ignore[attr-defined]
    assert (stage.name, stage.action, look.stage) == ("look-2", "look", "look-2")  # type: ignore[attr-defined]
    assert stage.request["paths"]["stage"].endswith("/p/runs/r1/00-look-2")


def test_one_share_and_one_machine_need_no_task_for_it(folder: Path) -> None:
    write_pipeline(folder / "p.yaml", "runtime: kubernetes")
    write_pipeline(folder / "q.yaml", source="inbox, shards: 3")
    assert not {"look"} & {t.task_id for name in "pq" for t in only_dag(folder, name).tasks}


def test_orphaned_pods_are_looked_for_where_a_pipeline_file_names_a_cluster(folder: Path) -> None:
    write_pipeline(folder / "p.yaml")
    assert set(bag().dags) == {"retrain_p", "refit_predict", "refit_reconcile", "refit_rollback"}
    write_pipeline(folder / "q.yaml", "runtime: kubernetes")
    write_pipeline(folder / "r.yaml", "runtime: kubernetes", "cluster: workstation")
    loaded = bag()
    assert loaded.import_errors == {}
    (delete,) = loaded.dags["refit_orphans"].tasks
    assert delete.places == [[None, "refit"]]  # type: ignore[attr-defined]


def test_stages_with_gpus_wait_for_them_in_a_pool(folder: Path) -> None:
    resources = "resources: {default: {gpus: 0}, stages: {train: {gpus: 2}}}"
    write_pipeline(folder / "p.yaml", "runtime: kubernetes", resources)
    dag = only_dag(folder)
    train, prune, gate = (dag.get_task(f"stages.{n}") for n in ("train", "prune", "gate_trained"))
    assert (train.pool, train.pool_slots) == (pools.GPU, 2)
    assert {prune.pool, gate.pool, dag.get_task("bind").pool} == {pools.PODS}
    assert train.operator_name == "TaoStageOperator"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["cluster: kubernetse"], ["no such cluster profile", "did you mean 'kubernetes'?"]),
        (["cluster: local"], ["local", "the pipeline says runtime: kubernetes"]),
        (["resources: {default: {gpus: 3}}"], ["gpu.total", "wants 3 GPUs", "wait for ever"]),
        (["resources: {default: {gpus: 1, gpu_type: a100}}"], ["gpu.types", "'a100'"]),
        (["resources: {default: {nodes: 2}}"], ["resources.default.nodes"]),
    ],
)
def test_what_the_cluster_does_not_have_is_an_import_error(folder: Path, lines: list[str], words: list[str]) -> None:
    write_pipeline(folder / "p.yaml", "runtime: kubernetes", *lines)
    (made,) = factory.make(Settings.from_env(), only="p")
    (problem,) = made.problems
    for word in words:
        assert word in str(problem)


def test_in_a_cluster_a_model_is_released_by_one_pipeline(folder: Path) -> None:
    """In pods each sees its own ledger alone, and would take the other's release for somebody's meddling."""
    for name in ("a", "b", "c"):
        write_pipeline(
            folder / f"{name}.yaml", "runtime: kubernetes", f"release: {{model: {'own' if name == 'c' else 'same'}}}"
        )
    found = factory.problems(Settings.from_env())
    assert [(p.file, p.key) for p in found] == [(str(folder / "b.yaml"), "release.model")]
    assert f"{folder / 'a.yaml'} releases 'same'" in str(found[0])


@pytest.mark.parametrize(
    "text", ["stages: [", "toolkit: cpu\nruntime: nowhere\n", None], ids=["torn", "invalid", "gone"]
)
def test_no_edit_of_the_file_reaches_the_tasks_of_a_run(folder: Path, text: str | None) -> None:
    file = write_pipeline(folder / "p.yaml")
    file.unlink() if text is None else file.write_text(text)
    for task_id, kind in TASKS.items():
        dag = factory.task_dag("p", task_id, Settings.from_env())
        assert (dag.dag_id, {t.task_id: type(t).__name__ for t in dag.tasks}) == ("retrain_p", {task_id: kind})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("stages: {train: {runtime: local}}\nruntime: kubernetes\n", "kubernetes"),
        ("{a: [runtime, local], 'runtime': \"kubernetes\"}", "kubernetes"),
        ("a: &x {b: 1}\nc: *x\nruntime: kubernetes\n", "kubernetes"),
        ("runtime:\ncluster: far\n", ""),
        ("runtime: null\n", ""),
        ("stages: [\nruntime: kubernetes\n", "kubernetes"),
        ("- runtime\n- local\n", ""),
        ("runtime: kubernetes\ndeep: " + 200_000 * "[", "kubernetes"),
    ],
)  # fmt: skip
def test_a_word_is_read_from_whatever_a_file_holds(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    assert inputs.peek(tmp_path / "p.yaml", "runtime") == word


@pytest.mark.parametrize("file", sorted(REPOSITORY.glob("specs/[ep]*s/*.yaml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("form", ["as it is", "left out", "quoted"])
def test_a_task_process_runs_a_stage_where_the_plan_says(tmp_path: Path, file: Path, form: str) -> None:
    """It does not read what a pipeline file means, and still has to know its runtime, the toolkit's default too."""
    other = {"as it is": r"\g<0>", "left out": "", "quoted": r'"runtime":\2'}[form]
    copy = tmp_path / file.name
    copy.write_text(re.sub(r"(?m)^(runtime):(.*)$", other, file.read_text()))
    top = yaml.safe_load(copy.read_text())
    models = {"tao": TaoPipeline, "cpu": CpuPipeline}
    assert inputs.runtime(copy) == top.get("runtime", models[top["toolkit"]].model_fields["runtime"].default)


# ---- text stays text


def test_hostile_text_is_never_code(folder: Path) -> None:
    description = json.dumps(HOSTILE + "\nsecond\0line.md")
    write_pipeline(folder / "p.yaml", f"description: {description}", "schedule: on_arrival", source="'{{ 1/0 }}'")
    text = (folder / "p.yaml").read_text().replace("classes: [a, b]", "classes: ['{{ 1/0 }}', '<img src=x>']")
    (folder / "p.yaml").write_text(text)
    dag = only_dag(folder)
    assert dag.description == HOSTILE
    doc = str(dag.doc_md)
    assert not doc.endswith(".md")
    assert "\\<b\\>" in doc
    assert "](" not in doc
    assert "\0" not in doc
    for task in dag.tasks:
        assert tuple(task.template_fields) == ()
        before = {k: repr(v) for k, v in vars(task).items()}
        task.render_template_fields(Context(params={}), jinja2.Environment(autoescape=True))
        assert {k: repr(v) for k, v in vars(task).items()} == before
    data = DagSerialization.to_dict(dag)
    data["dag"]["doc_md"].encode("utf-8")
    params = {p[0]: p[1]["default"] for p in data["dag"]["params"]}
    assert params["dataset_source"] == "{{ 1/0 }}"


@pytest.mark.parametrize(
    "text", ["a.md", "/etc/passwd.md", "*x* _y_ # z", "1. a", "    code", "<script>", "a\tb\x1b[0m"]
)
def test_plain_text_keeps_its_characters(text: str) -> None:
    shown = texts.plain(text)
    assert "\x1b" not in shown
    kept = shown.replace("\\", "")
    assert kept.split() == texts.clean(text).replace("\\", "").split()


# ---- the form


def test_the_form_has_groups_ranges_and_choices(folder: Path) -> None:
    write_pipeline(folder / "p.yaml", "stages: {train: {epochs: 7}}")
    params = only_dag(folder).params
    form = {key: params.get_param(key) for key in params}
    assert form["train_epochs"].value == 7
    assert form["train_epochs"].schema["type"] == "integer"
    assert form["train_epochs"].schema["minimum"] == 1
    assert form["quantize_method"].schema["enum"]
    assert form["gate_floor"].schema["type"] == ["null", "number"]
    assert form["reuse"].schema["type"] == "boolean"
    assert form["train_epochs"].description.endswith("from 1 to 10000")
    assert form["prune_ratio"].description.endswith("above 0 to below 1")
    assert all(p.schema["section"] and p.schema["title"] for p in form.values())
    assert set(form) == {f.key for f in plans.params(pipelines.load(folder / "p.yaml"))}


@pytest.mark.parametrize(
    ("key", "value"), [("train_epochs", 0), ("train_epochs", "7"), ("quantize_method", "magic"), ("prune_ratio", 1.5)]
)
def test_airflow_refuses_values_outside_of_the_form(folder: Path, key: str, value: object) -> None:
    write_pipeline(folder / "p.yaml")
    params = only_dag(folder).params
    params[key] = params.get_param(key).value
    with pytest.raises(ParamValidationError):
        params[key] = value


def test_the_same_file_gives_the_same_dag(folder: Path) -> None:
    """Otherwise each parse would make a new version of the DAG."""
    write_pipeline(folder / "p.yaml", "schedule: on_arrival")
    write_pipeline(folder / "bad.yaml", "sed: 1")

    def parse() -> dict[str, str]:
        return {i: json.dumps(DagSerialization.to_dict(d), sort_keys=True) for i, d in factory.dags().items()}

    assert parse() == parse()
