// From a network's outputs to words, bars and drawings.

const SHOWN = 5;

// Returns the classes of one image by falling probability: [{ name, share }].
export function classesOf(artifact, outputs) {
  const logits = outputs.logits.data;
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights
    .map((weight, index) => ({ name: nameOf(artifact, index), share: weight / sum }))
    .sort((a, b) => b.share - a.share)
    .slice(0, SHOWN);
}

export function nameOf(artifact, index) {
  return artifact.class_names[index] ?? `class ${index}`;
}

// Shows classes as a list with bars.
export function showClasses(list, classes) {
  while (list.children.length > classes.length || list.querySelector(".hint")) list.lastElementChild.remove();
  for (const [index, { name, share }] of classes.entries()) {
    const item = list.children[index] ?? list.appendChild(classItem());
    setText(item.querySelector(".name"), name);
    setText(item.querySelector(".share"), `${(100 * share).toFixed(share > 0.9995 ? 0 : 1)} %`);
    item.querySelector(".bar").style.width = `${100 * share}%`;
  }
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
  const inset = context.lineWidth;
  context.beginPath();
  for (const [horizontal, vertical] of [[0, 0], [1, 0], [1, 1], [0, 1]]) {
    const cornerX = x + (horizontal ? width - inset : inset);
    const cornerY = y + (vertical ? height - inset : inset);
    context.moveTo(cornerX + (horizontal ? -corner : corner), cornerY);
    context.lineTo(cornerX, cornerY);
    context.lineTo(cornerX, cornerY + (vertical ? -corner : corner));
  }
  context.stroke();
}

function classItem() {
  const item = document.createElement("li");
  item.className = "class";
  for (const part of ["bar", "name", "share"]) {
    const element = item.appendChild(document.createElement("span"));
    element.className = part;
  }
  item.firstElementChild.setAttribute("aria-hidden", "true");
  return item;
}
