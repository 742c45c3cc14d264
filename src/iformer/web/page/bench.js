// The benchmark: every network in every backend of this device, in turns. The computer judges the answers.

import { setText } from "./answers.js";
import { BACKENDS, Engine, bitmapOf, download, sampled } from "./engine.js";

const element = (id) => document.getElementById(id);

export async function runBenchmark(connection, manifest, device) {
  const { bench } = manifest;
  const lock = await navigator.wakeLock?.request("screen").catch(() => null);
  await send(connection, { kind: "device", device });
  // the work is done in workers, so silence means that this page is gone
  const alive = setInterval(() => send(connection, { kind: "alive" }).catch(() => {}), 5000);
  const rows = plan(manifest, device);
  const files = new Map();
  for (const row of rows) {
    setText(element("bench-state"), `Loading ${row.title}`);
    await load(connection, row, files, bench.limit_seconds);
    await send(connection, { kind: "answers", row: row.key, ...row.loaded, error: row.error });
  }
  files.clear();
  for (let round = 0; round < bench.rounds; round++) {
    for (const row of shuffled(rows.filter(({ error }) => !error))) {
      setText(element("bench-state"), `Round ${round + 1} of ${bench.rounds}: ${row.title}`);
      await turn(connection, row, bench);
    }
    element("bench-progress").value = (round + 1) / bench.rounds;
  }
  for (const row of rows) {
    row.engine?.close();
    await send(connection, { kind: "samples", row: row.key, samples_ms: row.error ? [] : row.samples, error: row.error });
  }
  clearInterval(alive);
  await send(connection, { kind: "done" });
  await lock?.release();
  document.body.dataset.state = "done";
  setText(element("bench-state"), "Done. The results are on the computer.");
}

function plan(manifest, device) {
  const rows = [];
  for (const backend of BACKENDS.filter(({ gpu }) => manifest.bench.gpu || !gpu)) {
    for (const [index, artifact] of manifest.artifacts.entries()) {
      if (artifact.runtime !== backend.runtime) continue;
      const usable = manifest.bench.threads.filter((count) => count <= device.threads);
      for (const threads of backend.threads ? new Set([1, ...usable]) : [1]) {
        const title = `${artifact.label}, ${backend.title}${backend.threads ? `, ${threads} ${threads === 1 ? "thread" : "threads"}` : ""}`;
        const item = element("bench-rows").appendChild(document.createElement("li"));
        item.appendChild(document.createElement("span")).textContent = title;
        const status = item.appendChild(document.createElement("span"));
        const key = { artifact: index, backend: backend.name, threads };
        const engine = new Engine(artifact, backend, threads, manifest.runtimes[artifact.runtime]);
        const row = { key, title, artifact, engine, status, item, samples: [], error: null, loaded: {} };
        rows.push(row);
        if (backend.gpu && !device.gpu) fail(row, new Error("this browser offers no WebGPU adapter"));
      }
    }
  }
  return rows;
}

async function load(connection, row, files, seconds) {
  if (row.error) return;
  try {
    const { file, sha256, check } = row.artifact;
    if (!files.has(file)) files.set(file, await download(connection, file, sha256));
    const { loadMs, firstMs } = await row.engine.load(files.get(file), seconds);
    const outputs = [];
    for (const photograph of check.photographs) {
      const answer = await row.engine.answer(await bitmapOf(connection, photograph), seconds);
      outputs.push(sampled(check, answer.outputs));
    }
    if (!outputs.every((named) => Object.values(named).every((values) => values.every(Number.isFinite)))) {
      throw new Error("the outputs are not finite numbers");
    }
    row.loaded = { load_ms: loadMs, first_ms: firstMs, outputs };
    setText(row.status, "loaded");
  } catch (error) {
    fail(row, error);
  }
}

async function turn(connection, row, { warmup, calls, limit_seconds: seconds }) {
  try {
    const [photograph] = row.artifact.check.photographs;
    const { samples } = await row.engine.time(await bitmapOf(connection, photograph), warmup, calls, seconds);
    row.samples.push(median(samples));
    setText(row.status, `${median(row.samples).toFixed(1)} ms`);
  } catch (error) {
    fail(row, error);
  }
}

function fail(row, error) {
  row.error = error.message.slice(0, 300) || "failed";
  row.engine.close();
  row.item.classList.add("failed");
  setText(row.status, row.error);
}

async function send(connection, message) {
  const response = await connection.post("message", message);
  if (!response.ok) throw new Error((await response.json()).error ?? `the computer answers ${response.status}`);
}

function median(values) {
  const sorted = values.slice().sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function shuffled(values) {
  const result = [...values];
  for (let index = result.length - 1; index > 0; index--) {
    const other = Math.floor(Math.random() * (index + 1));
    [result[index], result[other]] = [result[other], result[index]];
  }
  return result;
}
