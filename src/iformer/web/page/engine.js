// Runs networks in workers, with a time limit on everything that a backend does.

// Processors first: a GPU's driver that hangs may take the ones after it with it.
export const BACKENDS = [
  { name: "wasm", title: "WebAssembly", runtime: "onnx", threads: true, gpu: false },
  { name: "litert-wasm", title: "LiteRT WebAssembly", runtime: "litert", threads: true, gpu: false },
  { name: "litert-webgpu", title: "LiteRT WebGPU", runtime: "litert", threads: false, gpu: true },
  { name: "webgpu", title: "WebGPU", runtime: "onnx", threads: false, gpu: true },
];

const LOAD_SECONDS = 90;
const ANSWER_SECONDS = 30;

// One network in one backend.
export class Engine {
  constructor(artifact, backend, threads, runtime) {
    this.artifact = artifact;
    this.backend = backend;
    this.threads = backend.threads ? threads : 1;
    this.runtime = runtime;
    this.waiting = new Map();
    this.next = 0;
    this.failed = null;
    this.worker = new Worker(new URL("worker.js", import.meta.url));
    this.worker.addEventListener("message", ({ data }) => this.settle(data));
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      this.fail(new Error(event.message || "the backend crashed"));
    });
  }

  // Loads the network from its bytes, which are copied.
  load(bytes, seconds = LOAD_SECONDS) {
    return this.call(
      {
        command: "load",
        artifact: this.artifact,
        backend: this.backend.name,
        threads: this.threads,
        runtime: new URL(this.runtime.path, document.baseURI).href,
        bytes,
      },
      [],
      seconds,
    );
  }

  // Answers for an image; the bitmap is used up.
  answer(bitmap, seconds = ANSWER_SECONDS) {
    return this.call({ command: "answer", bitmap }, [bitmap], seconds);
  }

  // Times calls on an image; the bitmap is used up.
  time(bitmap, warmup, calls, seconds) {
    return this.call({ command: "time", bitmap, warmup, calls }, [bitmap], seconds);
  }

  call(message, transfer, seconds) {
    if (this.failed) return Promise.reject(this.failed);
    const id = this.next++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.fail(new Error(`no answer within ${seconds} seconds`)), 1000 * seconds);
      this.waiting.set(id, { resolve, reject, timer });
      this.worker.postMessage({ ...message, id }, transfer);
    });
  }

  settle({ id, value, error }) {
    const waiting = this.waiting.get(id);
    if (!waiting) return;
    clearTimeout(waiting.timer);
    this.waiting.delete(id);
    if (error === undefined) waiting.resolve(value);
    else waiting.reject(new Error(error));
  }

  fail(error) {
    this.failed = error;
    this.worker.terminate();
    for (const { reject, timer } of this.waiting.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.waiting.clear();
  }

  close() {
    this.fail(new Error("closed"));
  }
}

// Downloads a file and checks its SHA-256 where the browser can (in a secure context).
export async function download(connection, file, sha256, onProgress = () => {}) {
  const response = await connection.get(file);
  const total = Number(response.headers.get("Content-Length")) || 0;
  const parts = [];
  let received = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    received += value.length;
    onProgress(received, total);
  }
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  if (sha256 && globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== sha256) throw new Error(`${file} is not the file that was exported: its SHA-256 differs`);
  }
  return bytes;
}

// Every `stride`-th value of each output: what is compared. Large outputs have more values than a check needs.
export function sampled(check, outputs) {
  return Object.fromEntries(
    Object.entries(check.strides).map(([name, stride]) => {
      const values = outputs[name]?.data ?? [];
      return [name, Array.from(stride === 1 ? values : values.filter((_, index) => index % stride === 0))];
    }),
  );
}

// Compares outputs, by `sampled`, with those of the computer. Returns the largest difference
// as a share of the largest value of an output, or of its value in `leastScale` where that is larger.
export function compare(expected, actual, leastScale = {}) {
  let largest = 0;
  for (const [name, values] of Object.entries(expected)) {
    const found = actual[name];
    if (!found || found.length !== values.length) return Infinity;
    let scale = leastScale[name] ?? Number.MIN_VALUE;
    let difference = 0;
    for (let index = 0; index < values.length; index++) {
      scale = Math.max(scale, Math.abs(values[index]));
      const apart = Math.abs(values[index] - found[index]);
      difference = Number.isFinite(apart) ? Math.max(difference, apart) : Infinity;
    }
    largest = Math.max(largest, difference / scale);
  }
  return largest;
}

// Runs the reference photographs and compares the outputs with those that the computer computed. Throws if they differ.
export async function verify(connection, engine) {
  const { photographs, outputs, tolerance, least_scale: leastScale } = engine.artifact.check;
  let largest = 0;
  for (const [index, photograph] of photographs.entries()) {
    const { outputs: found } = await engine.answer(await bitmapOf(connection, photograph));
    const values = sampled(engine.artifact.check, found);
    const error = compare(outputs[index], values, leastScale);
    const sameClass =
      engine.artifact.task !== "classify" || indexOfLargest(outputs[index].logits) === indexOfLargest(values.logits);
    if (!sameClass || (tolerance !== null && !(error <= tolerance))) {
      const what = sameClass ? `differ by ${error.toPrecision(2)} of the largest value` : "name another class";
      throw new Error(`the answers are not those of the computer: on a reference picture they ${what}`);
    }
    largest = Math.max(largest, error);
  }
  return largest;
}

export async function bitmapOf(connection, file) {
  const response = await connection.get(file);
  return decode(await response.blob());
}

export function decode(blob) {
  return createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

export function indexOfLargest(values) {
  let best = 0;
  for (let index = 1; index < values.length; index++) if (values[index] > values[best]) best = index;
  return best;
}
