// Starts the page: the demo, or the benchmark if the computer asks for one.

import { runBenchmark } from "./bench.js";
import { Connection } from "./connection.js";
import { Demo } from "./demo.js";
import { describeDevice } from "./device.js";

const connection = new Connection();
try {
  await connection.open();
  const manifest = await (await connection.get("networks.json")).json();
  const device = await describeDevice();
  document.getElementById("title").textContent = manifest.title;
  document.title = `${manifest.title} · iFormer`;
  if (manifest.bench) {
    document.getElementById("demo").hidden = true;
    document.getElementById("bench").hidden = false;
    document.getElementById("subtitle").textContent = "Benchmark in the browser";
    await runBenchmark(connection, manifest, device);
  } else {
    const demo = new Demo(connection, manifest, device);
    await demo.start();
  }
} catch (error) {
  document.body.dataset.state = "failed";
  const problem = document.getElementById("problem");
  problem.textContent = error.message;
  problem.hidden = false;
  document.getElementById("state").textContent = "Nothing to show";
  document.getElementById("progress").hidden = true;
  document.getElementById("bench-state").textContent = error.message;
}
