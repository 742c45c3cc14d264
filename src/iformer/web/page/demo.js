// The demo: a camera or a photograph, the network's answer, and the choice of the backend.

import { setText, showAnswer } from "./answers.js";
import { openCamera } from "./camera.js";
import { BACKENDS, Engine, decode, download, verify } from "./engine.js";
import { notices } from "./device.js";
import { placement } from "./preprocess.js";

const MAX_DEFAULT_THREADS = 4;
const SPOKEN_EVERY_MS = 3000;

const element = (id) => document.getElementById(id);

export class Demo {
  constructor(connection, manifest, device) {
    this.connection = connection;
    this.manifest = manifest;
    this.device = device;
    this.files = new Map();
    this.engine = null;
    this.camera = null;
    this.photograph = null;
    this.spoken = { text: "", at: 0 };
    this.rate = 0;
    this.generation = 0;
    this.running = false;
    this.again = false;
  }

  async start() {
    this.describe();
    this.offerChoices();
    this.listen();
    await this.use();
  }

  describe() {
    const [artifact] = this.manifest.artifacts;
    const size = artifact.preprocessing.size;
    const megabytes = (artifact.bytes / 1e6).toFixed(1);
    const classes = `${artifact.num_classes} ${artifact.num_classes === 1 ? "class" : "classes"}`;
    element("subtitle").textContent = `${artifact.network} · ${classes} · ${megabytes} MB`;
    const facts = {
      Network: artifact.network,
      File: `${artifact.label}, ${megabytes} MB, ${artifact.precision}`,
      Input: `${size[0]} × ${size[1]} pixels`,
      Licence: this.manifest.licence,
      Browser: [this.device.browser, this.device.system, this.device.model].filter(Boolean).join(", "),
      "WebGPU adapter": this.device.gpu ? this.device.gpu + (this.device.gpu_is_software ? " (software)" : "") : "none",
      Processor: `${this.device.cores ?? "?"} logical cores, ${this.device.threads} for WebAssembly`,
    };
    for (const [name, value] of Object.entries(facts)) {
      element("facts").appendChild(document.createElement("dt")).textContent = name;
      element("facts").appendChild(document.createElement("dd")).textContent = value;
    }
    for (const notice of notices(this.device)) {
      element("notices").appendChild(document.createElement("li")).textContent = notice;
    }
  }

  offerChoices() {
    for (const [index, artifact] of this.manifest.artifacts.entries()) {
      for (const backend of BACKENDS.filter(({ runtime }) => runtime === artifact.runtime)) {
        const option = new Option(this.titleOf(backend), `${index} ${backend.name}`);
        if (backend.gpu && !this.device.gpu) {
          option.disabled = true;
          option.textContent += " (not here)";
        }
        element("backend").add(option);
      }
    }
    for (let count = 1; count <= this.device.threads; count *= 2) element("threads").add(new Option(count, count));
    const wanted = Math.min(MAX_DEFAULT_THREADS, this.device.threads);
    element("threads").value = 2 ** Math.floor(Math.log2(wanted));
  }

  // A software adapter is never called a GPU.
  titleOf(backend) {
    return backend.gpu && this.device.gpu_is_software ? `${backend.title} (software)` : backend.title;
  }

  listen() {
    element("backend").addEventListener("change", () => this.use());
    element("threads").addEventListener("change", () => this.use());
    element("camera").addEventListener("click", () => (this.camera ? this.stopCamera() : this.startCamera()));
    element("turn").addEventListener("click", () => this.turnCamera());
    element("choose").addEventListener("click", () => element("file").click());
    element("file").addEventListener("change", () => this.openPhotograph(element("file").files[0]));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.openPhotograph(event.dataTransfer.files[0]);
    });
    document.addEventListener("visibilitychange", () => this.run());
  }

  // Loads the network in the chosen backend, and refuses it if its answers are not those of the computer.
  async use() {
    const generation = ++this.generation;
    this.engine?.close();
    this.engine = null;
    this.allow(false);
    this.problem("");
    document.body.dataset.state = "loading";
    const [index, name] = element("backend").value.split(" ");
    const artifact = this.manifest.artifacts[index];
    const backend = BACKENDS.find((candidate) => candidate.name === name);
    element("threads").disabled = !backend.threads || this.device.threads === 1;
    const engine = new Engine(artifact, backend, Number(element("threads").value), this.manifest.runtimes[artifact.runtime]);
    try {
      this.state("Loading the network");
      const bytes = await this.file(artifact);
      this.state(`Starting ${this.titleOf(backend)}`);
      await engine.load(bytes);
      this.state("Comparing its answers with the computer's");
      const error = await verify(this.connection, engine);
      if (generation !== this.generation) return engine.close();
      setText(element("equality"), error === 0 ? "exact" : error.toExponential(0));
      this.engine = engine;
    } catch (failure) {
      engine.close();
      if (generation !== this.generation) return;
      setText(element("equality"), "refused");
      document.body.dataset.state = "refused";
      this.problem(`${this.titleOf(backend)}: ${failure.message}. Choose another backend.`);
      this.state(this.camera || this.photograph ? "" : `${this.titleOf(backend)} cannot be used.`);
      element("progress").hidden = true;
      element("backend").disabled = false;
      return;
    }
    this.allow(true);
    document.body.dataset.state = "ready";
    this.state(this.camera || this.photograph ? "" : "Point the camera at something, or pick a photograph.");
    this.run();
  }

  async file(artifact) {
    if (!this.files.has(artifact.file)) {
      const bytes = await download(this.connection, artifact.file, artifact.sha256, (received, total) => {
        element("progress").value = total ? received / total : 0;
      });
      this.files.set(artifact.file, bytes);
    }
    return this.files.get(artifact.file);
  }

  async startCamera() {
    element("camera").disabled = true;
    try {
      this.problem("");
      this.camera = await openCamera(element("video"));
      this.photograph = null;
      element("picture").hidden = true;
      element("video").hidden = false;
      element("turn").hidden = !this.camera.canTurn;
      setText(element("camera").querySelector("span"), "Stop");
      this.state("");
      this.run();
    } catch (error) {
      this.problem(error.message);
    } finally {
      element("camera").disabled = false;
    }
  }

  stopCamera() {
    this.camera?.close();
    this.camera = null;
    element("video").hidden = true;
    element("turn").hidden = true;
    setText(element("camera").querySelector("span"), "Camera");
    this.clear();
    if (!this.photograph) this.state("Point the camera at something, or pick a photograph.");
  }

  async turnCamera() {
    try {
      await this.camera?.turn();
    } catch (error) {
      this.problem(error.message);
    }
  }

  async openPhotograph(file) {
    if (!file || document.body.dataset.state === "refused") return;
    element("file").value = "";
    let bitmap;
    try {
      bitmap = await decode(file);
    } catch {
      this.problem(`This browser cannot read ${file.name}. JPEG, PNG and WebP work.`);
      return;
    }
    this.stopCamera();
    this.problem("");
    this.photograph = file;
    const picture = element("picture");
    [picture.width, picture.height] = [bitmap.width, bitmap.height];
    picture.getContext("2d").drawImage(bitmap, 0, 0);
    picture.hidden = false;
    bitmap.close();
    this.state("");
    this.run();
  }

  // Answers for the photograph once, or for the camera until it stops.
  async run() {
    this.again = this.running;
    if (this.running) return;
    this.running = true;
    try {
      let last = 0;
      while (this.engine && (this.camera || this.photograph) && !document.hidden) {
        const { engine, camera } = this;
        const bitmap = camera ? await camera.frame() : await decode(this.photograph);
        const size = [bitmap.width, bitmap.height];
        const answer = await engine.answer(bitmap);
        if (camera !== this.camera || engine !== this.engine) continue;
        this.show(engine.artifact, answer, size);
        const now = performance.now();
        if (camera && last) this.rate = this.rate ? 0.8 * this.rate + 200 / (now - last) : 1000 / (now - last);
        last = now;
        setText(element("latency"), `${answer.runMs.toFixed(answer.runMs < 10 ? 1 : 0)} ms`);
        setText(element("rate"), camera && this.rate ? this.rate.toFixed(1) : "–");
        if (!camera) break;
      }
    } catch (error) {
      if (this.engine) this.problem(`${error.message}. Choose another backend.`);
    } finally {
      this.running = false;
    }
    if (this.again) this.run();
  }

  show(artifact, { outputs }, [width, height]) {
    element("stage").style.aspectRatio = `${width} / ${height}`;
    const context = this.overlay(width, height);
    const place = placement(artifact.preprocessing, width, height);
    this.say(showAnswer(element("answer"), context, artifact, outputs, place, [width, height]));
  }

  // An empty canvas over the picture, drawn on in the picture's pixels. Lines have a width that is visible at the size
  // on the screen, and a small picture gets a finer canvas, so that letters are sharp.
  overlay(width, height) {
    const canvas = element("overlay");
    const shown = Math.max(1, Math.min(canvas.clientWidth, (canvas.clientHeight * width) / height));
    const fineness = Math.max(1, Math.min(8, Math.ceil((shown * devicePixelRatio) / width)));
    const [wide, high] = [width * fineness, height * fineness];
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    const context = canvas.getContext("2d");
    context.setTransform(fineness, 0, 0, fineness, 0, 0);
    context.clearRect(0, 0, width, height);
    context.lineWidth = (3 * width) / shown;
    context.lineCap = "round";
    return context;
  }

  // For screen readers: not more often than somebody can listen.
  say(text) {
    const now = performance.now();
    if (text === this.spoken.text || (this.camera && now - this.spoken.at < SPOKEN_EVERY_MS)) return;
    this.spoken = { text, at: now };
    setText(element("spoken"), text);
  }

  clear() {
    const canvas = element("overlay");
    canvas.width = canvas.width; // empty it, whatever is its transform
    this.rate = 0;
  }

  allow(allowed) {
    for (const id of ["camera", "choose", "backend"]) element(id).disabled = !allowed;
    if (allowed && !navigator.mediaDevices?.getUserMedia) element("camera").disabled = true;
  }

  state(text) {
    element("welcome").hidden = !text;
    setText(element("state"), text);
    element("progress").hidden = this.engine !== null;
  }

  problem(text) {
    setText(element("problem"), text);
    element("problem").hidden = !text;
  }
}
