// From a network's outputs to words, bars and drawings.

const SHOWN = 5;
const MIN_SCORE = 0.5;

// Shows an answer of any task over a picture of width x height; `place` is that of preprocess.js. Returns it in words.
export function showAnswer(list, context, artifact, outputs, place, [width, height]) {
  if (artifact.task === "detect") {
    const found = detectionsOf(artifact, outputs, place, width, height);
    drawDetections(context, found, width);
    showRows(list, found.slice(0, SHOWN), nothingFound(artifact, outputs));
    return countsInWords(found);
  }
  if (artifact.task === "segment") {
    const { shares, classes } = segmentsOf(artifact, outputs, place);
    drawSegments(context, classes, artifact, outputs, place, width, height);
    showRows(list, shares.slice(0, SHOWN), "");
    return shares.map(({ name, share }) => `${name} ${Math.round(100 * share)} percent`).slice(0, 3).join(", ");
  }
  const classes = classesOf(artifact, outputs);
  const found = isMultiLabel(artifact)
    ? classes.filter(({ share }) => share >= artifact.postprocess.threshold)
    : classes.slice(0, 1);
  showRows(list, isMultiLabel(artifact) ? found : classes, "No label.");
  drawCrop(context, place);
  return found.map(({ name, share }) => `${name}, ${Math.round(100 * share)} percent`).join("; ") || "no label";
}

// Returns the classes of one image by falling probability: [{ name, share }].
export function classesOf(artifact, outputs) {
  return probabilitiesOf(artifact, outputs.logits.data)
    .map((share, index) => ({ name: nameOf(artifact, index), share }))
    .sort((a, b) => b.share - a.share)
    .slice(0, SHOWN);
}

// Sigmoid of each logit where an image may have several labels, else softmax.
function probabilitiesOf(artifact, logits) {
  if (isMultiLabel(artifact)) return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

function isMultiLabel(artifact) {
  return artifact.postprocess?.activation === "sigmoid";
}

export function nameOf(artifact, index) {
  return artifact.class_names[index] ?? `class ${index}`;
}

// A class called background is left without colour, as in the pictures of `iformer predict`.
function isBackground(artifact, kind) {
  return nameOf(artifact, kind).toLowerCase() === "background";
}

// Returns the objects of one image in its pixels, best first: [{ name, share, box, color }].
export function detectionsOf(artifact, outputs, place, width, height) {
  const { score_threshold: threshold, detections, nms_iou: overlap } = artifact.postprocess;
  const boxes = outputs.boxes.data;
  const scores = outputs.scores.data;
  const classes = artifact.num_classes;
  const across = width / place.resizedWidth;
  const down = height / place.resizedHeight;
  const least = Math.max(threshold, MIN_SCORE);
  const candidates = [];
  for (let index = 0; index < scores.length; index++) {
    if (scores[index] <= least) continue;
    const at = 4 * Math.floor(index / classes);
    const [left, right] = [boxes[at], boxes[at + 2]].map((x) => Math.min(width, Math.max(0, x * across)));
    const [top, bottom] = [boxes[at + 1], boxes[at + 3]].map((y) => Math.min(height, Math.max(0, y * down)));
    if (left >= right || top >= bottom) continue; // in the padding of the letterbox
    candidates.push({ kind: index % classes, box: [left, top, right, bottom], share: scores[index] });
  }
  candidates.sort((a, b) => b.share - a.share);
  const kept = [];
  for (const { kind, box, share } of candidates.slice(0, overlap === null ? detections : 10 * detections)) {
    if (overlap !== null && kept.some((other) => other.kind === kind && iou(other.box, box) > overlap)) continue;
    kept.push({ kind, box, share });
    if (kept.length === detections) break;
  }
  return kept.map(({ kind, box, share }) => ({ name: nameOf(artifact, kind), share, box, color: colorOf(kind) }));
}

// Says what the network holds for most likely where no score is above the threshold.
function nothingFound(artifact, outputs) {
  const scores = outputs.scores.data;
  const best = scores.reduce((index, score, other) => (score > scores[index] ? other : index), 0);
  const percent = (share) => `${Math.round(100 * share)} %`;
  const least = percent(Math.max(artifact.postprocess.score_threshold, MIN_SCORE));
  const name = nameOf(artifact, best % artifact.num_classes);
  return `Nothing found with a score above ${least}. The best: ${name}, ${percent(scores[best])}.`;
}

// Returns the class of each point of the network's map, and the share of each class in the picture, largest first.
export function segmentsOf(artifact, outputs, place) {
  const { data, shape } = outputs.logits;
  const [count, rows, columns] = shape.slice(-3);
  const plane = rows * columns;
  const classes = new Uint16Array(plane);
  const shares = new Array(count).fill(0);
  const [shownColumns, shownRows] = shownPoints(place, rows, columns);
  for (let point = 0; point < plane; point++) {
    for (let kind = 1; kind < count; kind++) {
      if (data[kind * plane + point] > data[classes[point] * plane + point]) classes[point] = kind;
    }
    const row = Math.floor(point / columns);
    if (row < shownRows && point - row * columns < shownColumns) shares[classes[point]]++;
  }
  const all = shares.reduce((a, b) => a + b, 0);
  const named = shares.map((share, kind) => ({
    name: nameOf(artifact, kind),
    share: share / all,
    color: isBackground(artifact, kind) ? null : `rgb(${artifact.postprocess.palette[kind].join(" ")})`,
  }));
  return { classes, shares: named.filter(({ share }) => share > 0).sort((a, b) => b.share - a.share) };
}

// Shows classes, objects or areas as a list with bars.
function showRows(list, rows, otherwise) {
  if (rows.length === 0) {
    const hint = document.createElement("li");
    hint.className = "hint";
    hint.textContent = otherwise;
    list.replaceChildren(hint);
    return;
  }
  while (list.children.length > rows.length || list.querySelector(".hint")) list.lastElementChild.remove();
  for (const [index, { name, share, color }] of rows.entries()) {
    const item = list.children[index] ?? list.appendChild(classItem());
    setText(item.querySelector(".name"), name);
    setText(item.querySelector(".share"), `${(100 * share).toFixed(share > 0.9995 ? 0 : 1)} %`);
    item.querySelector(".bar").style.width = `${100 * share}%`;
    item.querySelector(".swatch").hidden = !color;
    item.querySelector(".swatch").style.background = color ?? "";
  }
}

function drawDetections(context, found, pictureWidth) {
  const size = 5 * context.lineWidth;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { name, share, box, color } of found.slice().reverse()) {
    const [left, top, right, bottom] = box;
    context.strokeStyle = color;
    context.strokeRect(left, top, right - left, bottom - top);
    const label = `${name} ${Math.round(100 * share)} %`;
    const width = context.measureText(label).width + size / 2;
    const x = Math.max(0, Math.min(left, pictureWidth - width));
    const y = Math.max(0, top - 1.3 * size);
    context.fillStyle = color;
    context.fillRect(x, y, width, 1.3 * size);
    context.fillStyle = "#10121a";
    context.fillText(label, x + size / 4, y + size * 0.15);
  }
}

function drawSegments(context, classes, artifact, outputs, place, width, height) {
  const [rows, columns] = outputs.logits.shape.slice(-2);
  const map = new ImageData(columns, rows);
  for (let point = 0; point < classes.length; point++) {
    map.data.set(artifact.postprocess.palette[classes[point]], 4 * point);
    map.data[4 * point + 3] = isBackground(artifact, classes[point]) ? 0 : 150;
  }
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(map, 0, 0);
  const across = (columns * place.resizedWidth) / place.inputWidth;
  const down = (rows * place.resizedHeight) / place.inputHeight;
  context.drawImage(small, 0, 0, across, down, 0, 0, width, height);
}

function shownPoints(place, rows, columns) {
  return [
    Math.max(1, Math.round((columns * place.resizedWidth) / place.inputWidth)),
    Math.max(1, Math.round((rows * place.resizedHeight) / place.inputHeight)),
  ];
}

function countsInWords(found) {
  const counts = new Map();
  for (const { name } of found) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => `${count} ${name}`).join(", ") || "nothing found";
}

function iou(a, b) {
  const across = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const down = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const both = across * down;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return both / (area(a) + area(b) - both);
}

// Colours that differ for neighbouring classes and are light enough for dark letters.
function colorOf(kind) {
  return `hsl(${(kind * 137.5 + 210) % 360} 90% 68%)`;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Draws the corners of the part of the picture that the network sees. `place` is that of preprocess.js.
export function drawCrop(context, place) {
  const { box, resizedWidth, resizedHeight, left, top, inputWidth, inputHeight } = place;
  const across = (box.right - box.left) / resizedWidth;
  const down = (box.bottom - box.top) / resizedHeight;
  const x = box.left + left * across;
  const y = box.top + top * down;
  const width = inputWidth * across;
  const height = inputHeight * down;
  const corner = Math.min(width, height) / 10;
  const line = context.lineWidth;
  const inset = line;
  context.beginPath();
  for (const [horizontal, vertical] of [[0, 0], [1, 0], [1, 1], [0, 1]]) {
    const cornerX = x + (horizontal ? width - inset : inset);
    const cornerY = y + (vertical ? height - inset : inset);
    context.moveTo(cornerX + (horizontal ? -corner : corner), cornerY);
    context.lineTo(cornerX, cornerY);
    context.lineTo(cornerX, cornerY + (vertical ? -corner : corner));
  }
  // light on dark, so that the corners show on any picture
  for (const [color, lines] of [["rgb(0 0 0 / 55%)", 2], ["rgb(255 255 255 / 95%)", 1]]) {
    context.strokeStyle = color;
    context.lineWidth = lines * line;
    context.stroke();
  }
}

function classItem() {
  const item = document.createElement("li");
  item.className = "class";
  for (const part of ["bar", "label", "share"]) {
    const element = item.appendChild(document.createElement("span"));
    element.className = part;
  }
  item.firstElementChild.setAttribute("aria-hidden", "true");
  for (const part of ["swatch", "name"]) {
    const element = item.children[1].appendChild(document.createElement("span"));
    element.className = part;
  }
  return item;
}
