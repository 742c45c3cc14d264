// One network in one backend. A worker of its own, so that a crash or a hang ends this worker and nothing else.

const MODULES = { onnx: "./onnx.js", litert: "./litert.js" };

// A classic worker, because LiteRT loads its parts by importScripts; modules come by import().
let modules = null;
let artifact = null;
let model = null;

const COMMANDS = {
  // Loads a network. Returns the milliseconds from the file to the first answer.
  async load(given) {
    artifact = given.artifact;
    modules = await import("./preprocess.js");
    const { open } = await import(MODULES[artifact.runtime]);
    const start = performance.now();
    model = await open(given);
    const loaded = performance.now();
    await model.run(blank());
    return { loadMs: loaded - start, firstMs: performance.now() - loaded };
  },

  // Answers for one image. Returns its outputs by name, and the milliseconds with and without preprocessing.
  async answer({ bitmap }) {
    const start = performance.now();
    const input = inputOf(bitmap);
    const ready = performance.now();
    const outputs = await model.run(input);
    const end = performance.now();
    return { outputs, runMs: end - ready, totalMs: end - start };
  },

  // Times calls on one image. Returns the milliseconds of each, after `warmup` calls.
  async time({ bitmap, warmup, calls }) {
    const input = inputOf(bitmap);
    for (let call = 0; call < warmup; call++) await model.run(input);
    const samples = [];
    for (let call = 0; call < calls; call++) {
      const start = performance.now();
      await model.run(input);
      samples.push(performance.now() - start);
    }
    return { samples };
  },
};

let canvas = null;

function inputOf(bitmap) {
  const { width, height } = bitmap;
  if (!canvas) canvas = new OffscreenCanvas(width, height);
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // transparency is composited on white
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const { preprocessing } = artifact;
  const place = modules.placement(preprocessing, width, height);
  return modules.networkInput(artifact, modules.resample(data, width, place, preprocessing));
}

function blank() {
  const [height, width] = artifact.preprocessing.size;
  return modules.networkInput(artifact, new Uint8Array(height * width * 3));
}

self.addEventListener("message", async ({ data }) => {
  try {
    self.postMessage({ id: data.id, value: await COMMANDS[data.command](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error).slice(0, 500) });
  }
});
