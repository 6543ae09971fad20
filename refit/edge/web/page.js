// The page: loads the model, looks at a picture that is chosen (or at ?image=ADDRESS), draws what was found.
// ?backend=wasm|webgl|cpu chooses where it runs; wasm is what `refit.edge evaluate` used for the bundle's figures.
"use strict";

const byId = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);

// A class's colour and that of letters on it, as in refit.postprocess.draw: golden steps around the colour wheel.
function colours(index) {
  const hue = ((index * 0.6180339887) % 1) * 6;
  const [r, g, b] = [5, 3, 1].map((n) => {
    const at = (n + hue) % 6;
    return Math.round(255 * (1 - (220 / 255) * Math.max(0, Math.min(at, 4 - at, 1))));
  });
  return { fill: `rgb(${r}, ${g}, ${b})`, ink: 0.299 * r + 0.587 * g + 0.114 * b < 140 ? "#fff" : "#000" };
}

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

function draw(picture, found, classes) {
  const canvas = byId("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const letters = Math.max(12, Math.round(picture.width / 40));
  context.lineWidth = Math.max(2, picture.width / 250);
  context.font = `${letters}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { name, score, box: [x1, y1, x2, y2] } of [...found].reverse()) { // the best lie on top
    const { fill, ink } = colours(classes.indexOf(name));
    const text = `${name} ${score.toFixed(2)}`;
    const [width, height] = [context.measureText(text).width + 6, letters + 4];
    const x = Math.max(0, Math.min(x1, picture.width - width));
    const y = y1 < height ? y1 : y1 - height;
    context.strokeStyle = context.fillStyle = fill;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    context.fillRect(x, y, width, height);
    context.fillStyle = ink;
    context.fillText(text, x + 3, y + 3);
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

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`the server says ${answer.status} ${answer.statusText}`);
  return answer.blob();
}

async function main() {
  tf.wasm.setWasmPaths("lib/");
  const backend = asked.get("backend") || "wasm";
  if (!(await tf.setBackend(backend))) throw new Error(`the backend ${backend} does not start in this browser`);
  await tf.ready();
  const about = await (await fetch("refit.json")).json();
  const network = await tf.loadGraphModel("model.json");
  const outputs = network.modelSignature.outputs;
  let last = null;

  function show() {
    if (last === null) return;
    const least = Number(byId("threshold").value);
    const found = detect(about, last.coverage, last.bbox, last.picture, last.placed, least);
    draw(last.picture, found, about.classes);
    byId("said").textContent =
      `${found.length} found in ${last.milliseconds.toFixed(0)} ms by ${tf.getBackend()}; ` +
      `${last.picture.width} x ${last.picture.height} pixels`;
    window.refit = { found, backend: tf.getBackend(), milliseconds: last.milliseconds }; // for whoever drives the page
  }

  // A picture as a Blob: a file that was chosen is one already, and no policy has to let it be fetched.
  async function look(name, blob) {
    byId("said").textContent = `Looking at ${name} ...`;
    try {
      const picture = await createImageBitmap(await blob);
      const placed = fit(picture.width, picture.height, about.input);
      const image = tensor(picture, about.input, placed);
      const began = performance.now();
      const answers = network.execute(image, [outputs.coverage.name, outputs.bbox.name]);
      const [coverage, bbox] = await Promise.all(answers.map((answer) => answer.data()));
      last = { picture, placed, coverage, bbox, milliseconds: performance.now() - began };
      tf.dispose([image, answers]);
      show();
    } catch (error) {
      byId("said").textContent = `${name} cannot be looked at: ${error.message}`;
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
  byId("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) look(file.name, file);
  });
  byId("said").textContent = "Choose a picture. It stays in this browser.";
  if (asked.get("image")) await look(asked.get("image"), fetched(asked.get("image")));
}

main().catch((error) => {
  const advice = location.protocol === "file:" ? " Serve this folder: python3 -m http.server" : "";
  byId("said").textContent = `The model cannot be loaded: ${error.message}.${advice}`;
  window.refit = { error: error.message };
});
