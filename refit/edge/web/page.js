// The page: loads the model, looks at a picture that is chosen (or at ?image=ADDRESS), draws what was found.
// ?backend=wasm|webgl|cpu chooses where it runs; wasm is what `refit.edge evaluate` used for the bundle's figures.
"use strict";

const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000"];
const byId = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);

// The picture as float32 [1, h, w, c]. The browser scales it, so its pixels differ a little from OpenCV's.
function tensor(picture, input, placed) {
  const canvas = document.createElement("canvas");
  canvas.width = input.width;
  canvas.height = input.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, input.width, input.height); // the margin is black
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, placed.width, placed.height);
  const { data } = context.getImageData(0, 0, input.width, input.height);
  const values = new Float32Array(input.width * input.height * input.channels);
  for (let i = 0, at = 0; i < data.length; i += 4) {
    const [r, g, b] = [data[i], data[i + 1], data[i + 2]];
    const pixel = input.channels === 1 ? [Math.round(0.299 * r + 0.587 * g + 0.114 * b)]
      : input.channel_order === "bgr" ? [b, g, r] : [r, g, b];
    for (let c = 0; c < pixel.length; c++) {
      const mean = (input.mean || [])[c] || 0;
      const std = (input.std || [])[c] || 1;
      values[at++] = (pixel[c] * input.scale - mean) / std;
    }
  }
  return tf.tensor(values, [1, input.height, input.width, input.channels]);
}

function draw(picture, found) {
  const canvas = byId("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const names = [...new Set(found.map((one) => one.name))].sort();
  context.lineWidth = Math.max(2, picture.width / 250);
  context.font = `${Math.max(12, Math.round(picture.width / 40))}px system-ui, sans-serif`;
  for (const { name, score, box: [x1, y1, x2, y2] } of found) {
    context.strokeStyle = context.fillStyle = COLOURS[names.indexOf(name) % COLOURS.length];
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    context.fillText(`${name} ${score.toFixed(2)}`, x1 + 2, Math.max(y1 - 4, 14));
  }
  const rows = found.map(({ name, score, box }) => {
    const row = document.createElement("tr");
    for (const text of [name, score.toFixed(3), box.map((n) => Math.round(n)).join(", ")]) {
      row.append(Object.assign(document.createElement("td"), { textContent: text }));
    }
    return row;
  });
  byId("found").hidden = rows.length === 0;
  byId("found").tBodies[0].replaceChildren(...rows);
}

async function main() {
  tf.wasm.setWasmPaths("lib/");
  await tf.setBackend(asked.get("backend") || "wasm");
  await tf.ready();
  const about = await (await fetch("refit.json")).json();
  const network = await tf.loadGraphModel("model.json");
  const outputs = network.modelSignature.outputs;
  let last = null;

  function show() {
    if (last === null) return;
    const least = Number(byId("threshold").value);
    const found = detect(about, last.coverage, last.bbox, last.picture, last.placed, least);
    draw(last.picture, found);
    byId("said").textContent =
      `${found.length} found in ${last.milliseconds.toFixed(0)} ms by ${tf.getBackend()}; ` +
      `${last.picture.width} x ${last.picture.height} pixels`;
    window.refit = { found, backend: tf.getBackend(), milliseconds: last.milliseconds }; // for whoever drives the page
  }

  async function look(address) {
    try {
      const picture = await createImageBitmap(await (await fetch(address)).blob());
      const placed = fit(picture.width, picture.height, about.input);
      const image = tensor(picture, about.input, placed);
      const began = performance.now();
      const answers = network.execute(image, [outputs.coverage.name, outputs.bbox.name]);
      const [coverage, bbox] = await Promise.all(answers.map((answer) => answer.data()));
      last = { picture, placed, coverage, bbox, milliseconds: performance.now() - began };
      tf.dispose([image, answers]);
      show();
    } catch (error) {
      byId("said").textContent = `This picture cannot be looked at: ${error.message}`;
    }
  }

  byId("title").textContent = `Finds ${about.classes.join(", ")}`;
  byId("threshold").value = about.postprocess.score_threshold;
  byId("shown").textContent = byId("threshold").value;
  byId("threshold").addEventListener("input", () => {
    byId("shown").textContent = byId("threshold").value;
    show();
  });
  byId("file").disabled = false;
  byId("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    const address = URL.createObjectURL(file);
    await look(address);
    URL.revokeObjectURL(address);
  });
  byId("said").textContent = "Choose a picture. It stays in this browser.";
  if (asked.get("image")) await look(asked.get("image"));
}

main().catch((error) => {
  byId("said").textContent = `The model cannot be loaded: ${error.message}. Serve this folder: python3 -m http.server`;
  window.refit = { error: error.message };
});
