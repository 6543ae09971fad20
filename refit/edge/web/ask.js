// Runs a TF.js model in node for `refit.edge evaluate`: float32 images [1, h, w, c] come in on stdin, one after the
// other, and each one's outputs go out on stdout, float32, in the order of `outputs`.
//
//   node ask.js '{"folder": ".../web", "shape": [1, h, w, c], "outputs": ["coverage", "bbox"]}'
//
// It loads the very files of the bundle: the library as a browser would, the model from where it lies.
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const about = JSON.parse(process.argv[2]);
const file = (...names) => path.join(about.folder, ...names);

// A bundle of the browser's as a module of node's; the backend finds the library where it asks for its core.
function load(name, need) {
  const source = fs.readFileSync(file("lib", name), "utf8");
  const wrapped = vm.runInThisContext(`(function (exports, module, require, __dirname) {${source}\n})`, { filename: name });
  const module = { exports: {} };
  wrapped(module.exports, module, need, file("lib"));
  return module.exports;
}
const tf = load("tf.min.js", require);
const wasm = load("tf-backend-wasm.min.js", (name) => (name === "@tensorflow/tfjs-core" ? tf : require(name)));

function exactly(size) { // read `size` bytes of stdin; null at its end
  const whole = Buffer.alloc(size);
  for (let at = 0; at < size; ) {
    let got = 0;
    try {
      got = fs.readSync(0, whole, at, size - at, null);
    } catch (error) {
      if (error.code === "EAGAIN") continue;
      if (error.code !== "EOF") throw error;
    }
    if (got === 0) return null;
    at += got;
  }
  return whole;
}

function send(data) {
  for (let at = 0; at < data.length; ) at += fs.writeSync(1, data, at);
}

async function main() {
  wasm.setWasmPaths(file("lib") + path.sep);
  if (!(await tf.setBackend("wasm"))) throw new Error("the WebAssembly backend does not start");
  await tf.ready();
  const model = JSON.parse(fs.readFileSync(file("model.json"), "utf8"));
  const shards = model.weightsManifest.flatMap((group) => group.paths.map((name) => fs.readFileSync(file(name))));
  const weights = Buffer.concat(shards);
  const network = await tf.loadGraphModel(tf.io.fromMemory({
    modelTopology: model.modelTopology,
    weightSpecs: model.weightsManifest.flatMap((group) => group.weights),
    weightData: weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.length),
    signature: model.signature,
    userDefinedMetadata: model.userDefinedMetadata,
  }));
  const names = about.outputs.map((role) => model.signature.outputs[role].name);
  const size = 4 * about.shape.reduce((a, b) => a * b, 1);
  for (let data = exactly(size); data !== null; data = exactly(size)) {
    const pixels = new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + size));
    const image = tf.tensor(pixels, about.shape);
    const answers = network.execute(image, names);
    for (const answer of answers) send(Buffer.from(answer.dataSync().slice().buffer));
    tf.dispose([image, answers]);
  }
}

main().catch((error) => {
  console.error(error && error.stack ? error.stack.split("\n")[0] : error);
  process.exit(1);
});
