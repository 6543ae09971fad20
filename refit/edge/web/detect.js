// Reads the answer of a DetectNet_v2 as refit.postprocess does: grid -> boxes -> NMS within each class.
// `about` is refit.json (docs/contracts.md, "Model sidecar").
"use strict";

// How a picture lies in the input: its size there, and input pixels per pixel of the picture. In the upper left corner.
function fit(width, height, input) {
  if (input.resize === "stretch") {
    return { width: input.width, height: input.height, x: input.width / width, y: input.height / height };
  }
  const factor = Math.min(input.width / width, input.height / height);
  const inner = [width, height].map((n) => Math.max(1, Math.round(n * factor)));
  const size = [Math.min(input.width, inner[0]), Math.min(input.height, inner[1])];
  return { width: size[0], height: size[1], x: size[0] / width, y: size[1] / height };
}

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

// coverage [h, w, C] and bbox [h, w, 4 C], flat -> [{name, score, box: [x1, y1, x2, y2] in pixels of the picture}],
// the best first.
function detect(about, coverage, bbox, picture, placed, threshold) {
  const { score_threshold, nms_iou, max_detections } = about.postprocess;
  const least = threshold === undefined ? score_threshold : threshold;
  const count = about.classes.length;
  const columns = about.input.width / about.stride;
  const found = [];
  for (let cls = 0; cls < count; cls++) {
    const boxes = [];
    for (let cell = 0; cell * count < coverage.length; cell++) {
      const score = coverage[cell * count + cls];
      if (!(score >= least)) continue;
      const x = (cell % columns) * about.stride + about.offset;
      const y = Math.floor(cell / columns) * about.stride + about.offset;
      const [left, top, right, bottom] = [0, 1, 2, 3].map((i) => about.bbox_norm * bbox[(cell * count + cls) * 4 + i]);
      const inside = (value, most) => Math.min(Math.max(value, 0), most);
      const box = [
        inside((x - left) / placed.x, picture.width), inside((y - top) / placed.y, picture.height),
        inside((x + right) / placed.x, picture.width), inside((y + bottom) / placed.y, picture.height),
      ];
      if (box[2] > box[0] && box[3] > box[1]) boxes.push({ name: about.classes[cls], score, box });
    }
    boxes.sort((a, b) => b.score - a.score);
    const kept = [];
    for (const one of boxes) {
      if (kept.length < max_detections && kept.every((other) => overlap(one.box, other.box) <= nms_iou)) kept.push(one);
    }
    found.push(...kept);
  }
  return found.sort((a, b) => b.score - a.score).slice(0, max_detections);
}
