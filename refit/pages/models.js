// The Models page's script: buttons that start DAG runs through Airflow's API with the user's own rights, approvals,
// and the progress of runs that go on. Everything else on the page works without it.
"use strict";

const api = document.body.dataset.api;
const notice = document.getElementById("notice");

function say(text, bad, link) {
  if (!notice) return;
  notice.className = bad ? "error" : "";
  notice.textContent = text;
  if (link) {
    const a = document.createElement("a");
    a.href = link;
    a.dataset.out = "1";
    a.textContent = " Show it in Airflow";
    notice.append(a);
  }
  notice.scrollIntoView({ block: "nearest" });
}

async function call(method, path, body) {
  const answer = await fetch(api + path, {
    method,
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "same-origin",
  });
  const text = await answer.text();
  let value = null;
  try { value = JSON.parse(text); } catch { /* a proxy's page */ }
  if (answer.ok) return value;
  const detail = value && value.detail;
  const told = typeof detail === "string" ? detail : Array.isArray(detail) ? detail.map((d) => d.msg).join("; ") : text.slice(0, 200);
  const why = { 401: "you are not logged in (any more)", 403: "you may not do this", 404: "Airflow does not know this DAG (any more)", 409: "this was answered already" };
  throw new Error(`${why[answer.status] || "Airflow refused it"} (${answer.status}${told ? ": " + told : ""})`);
}

// --- buttons: <button data-dialog="id">, <dialog id data-dag data-conf><form>...</form></dialog>

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-dialog]");
  if (button) {
    const dialog = document.getElementById(button.dataset.dialog);
    dialog.dataset.version = button.dataset.version || "";
    for (const slot of dialog.querySelectorAll("[data-slot=version]")) slot.textContent = button.dataset.version || "";
    dialog.returnValue = "";
    dialog.showModal();
  }
  const out = event.target.closest("a[data-out]");
  // In Airflow's UI these pages are in a frame that may not navigate the window; a link of the window itself may.
  if (out && window.parent !== window && event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    try {
      const link = window.parent.document.createElement("a");
      link.href = out.href;
      event.preventDefault();
      link.click();
    } catch { /* a frame of another origin: the link opens here */ }
  }
});

for (const dialog of document.querySelectorAll("dialog[data-dag]")) {
  dialog.addEventListener("close", async () => {
    if (dialog.returnValue !== "go") return;
    const conf = JSON.parse(dialog.dataset.conf);
    if (dialog.dataset.version) conf.version = Number(dialog.dataset.version);
    for (const field of dialog.querySelectorAll("[name]")) conf[field.name] = field.type === "checkbox" ? field.checked : field.value;
    const dag = encodeURIComponent(dialog.dataset.dag);
    say("Starting the run ...");
    try {
      const run = await call("POST", `/dags/${dag}/dagRuns`, { logical_date: null, conf });
      const base = document.body.dataset.airflow.replace(/\/$/, "");
      say(`Started ${run.dag_run_id}.`, false, `${base}/dags/${dag}/runs/${encodeURIComponent(run.dag_run_id)}`);
      setTimeout(look, 1500);
    } catch (error) {
      say(`Not started: ${error.message}`, true);
    }
  });
}

// --- approvals: what Airflow says waits for a person in this pipeline's runs

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// The little Markdown that Refit's questions are written in: a list, **bold**, `code`, [links](/of this server), \ before
// a sign. Never HTML.
function written(markdown) {
  const list = document.createElement("ul");
  for (const line of markdown.split("\n").filter((l) => l.trim())) {
    const item = document.createElement("li");
    for (const [, bold, code, name, path, plain] of line.replace(/^\s*-\s+/, "").matchAll(/\*\*(.+?)\*\*|`([^`]*)`|\[([^\]]+)\]\((\/[^/)][^)]*)\)|((?:\\.|[^*`\\]|[*`\\])+?(?=\*\*|`|\[[^\]]+\]\(\/|$))/g)) {
      if (bold !== undefined) item.append(element("b", bold));
      else if (path !== undefined) item.append(Object.assign(element("a", name), { href: path }));
      else if (code !== undefined) item.append(element("code", code));
      else item.append(plain.replace(/\\(.)/g, "$1"));
    }
    list.append(item);
  }
  return list;
}

async function approvals() {
  const place = document.getElementById("approvals");
  if (!place) return;
  let found;
  try {
    const answer = await call("GET", `/dags/${encodeURIComponent(place.dataset.dag)}/dagRuns/~/hitlDetails?response_received=false&limit=10`);
    found = answer.hitl_details || [];
  } catch { return; }
  place.replaceChildren();
  for (const detail of found) {
    const ti = detail.task_instance;
    const box = document.createElement("div");
    box.className = "lead approval";
    box.append(element("h2", detail.subject), written(detail.body || ""));
    const note = Object.assign(element("input", ""), { maxLength: 500, placeholder: "Note for the ledger, if you like" });
    note.setAttribute("aria-label", "Note");
    note.disabled = place.dataset.may !== "1";
    box.append(note);
    for (const option of detail.options) {
      const button = element("button", option);
      if (option === detail.options[0]) button.className = "main";
      button.disabled = place.dataset.may !== "1";
      button.title = button.disabled ? "You may look at it, not answer" : "";
      button.addEventListener("click", async () => {
        const path = `/dags/${encodeURIComponent(ti.dag_id)}/dagRuns/${encodeURIComponent(ti.dag_run_id)}/taskInstances/${encodeURIComponent(ti.task_id)}/${ti.map_index}/hitlDetails`;
        try {
          await call("PATCH", path, { chosen_options: [option], params_input: { note: note.value || null } });
          say(`Answered: ${option}.`);
        } catch (error) {
          say(`Not answered: ${error.message}`, true);
        }
        approvals();
      });
      box.append(button);
    }
    place.append(box);
  }
}

// --- progress: <div data-live="address">, whose answer is a piece of this page, made and escaped by the server

let looking = 0;
async function look() {
  const parts = [...document.querySelectorAll("[data-live]")];
  if (!parts.length || document.hidden) return;
  for (const part of parts) {
    try {
      const answer = await fetch(part.dataset.live, { credentials: "same-origin" });
      if (answer.ok) part.innerHTML = await answer.text();
    } catch { /* the next look may reach it */ }
  }
}
function follow() {
  clearInterval(looking);
  if (document.querySelector("[data-live]")) looking = setInterval(look, 5000);
}

// --- comparing: two boxes, no more

for (const form of document.querySelectorAll("form[data-two]")) {
  form.addEventListener("change", () => {
    const boxes = [...form.querySelectorAll("input[type=checkbox]")];
    const on = boxes.filter((b) => b.checked).length;
    for (const b of boxes) b.disabled = on >= 2 && !b.checked;
    form.querySelector("button[type=submit]").disabled = on !== 2;
  });
  form.dispatchEvent(new Event("change"));
}

follow();
approvals();
