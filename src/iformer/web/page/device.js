// What this device is and what its browser offers.

export async function describeDevice() {
  const agent = navigator.userAgentData;
  let system = agent?.platform ?? "";
  let model = "";
  if (agent?.getHighEntropyValues) {
    const more = await agent.getHighEntropyValues(["platformVersion", "model", "architecture"]).catch(() => ({}));
    system = [system, more.platformVersion, more.architecture].filter(Boolean).join(" ");
    model = more.model ?? "";
  }
  const gpu = await findGpu();
  return {
    browser: browserName(agent),
    user_agent: navigator.userAgent.slice(0, 300),
    system: system.slice(0, 100),
    model: model.slice(0, 100),
    gpu: gpu.name,
    gpu_is_software: gpu.software,
    threads: threadLimit(),
    cores: navigator.hardwareConcurrency ?? null,
    memory_gb: navigator.deviceMemory ?? null,
    secure_context: isSecureContext,
    cross_origin_isolated: Boolean(globalThis.crossOriginIsolated),
    screen: `${screen.width}x${screen.height}@${devicePixelRatio}`.slice(0, 40),
  };
}

// How many threads WebAssembly may use here.
export function threadLimit() {
  return globalThis.crossOriginIsolated ? Math.max(1, navigator.hardwareConcurrency ?? 1) : 1;
}

// What is missing, in words that say what to do.
export function notices(device) {
  const found = [];
  if (!device.secure_context) {
    found.push(
      "This page was opened over plain http from another machine. Browsers then allow no camera, no WebGPU and no " +
        "threads; photographs work. Start the demo with --lan, or forward the port with adb reverse.",
    );
  } else {
    if (!device.cross_origin_isolated) {
      found.push("WebAssembly has one thread here, because the server sends no COOP and COEP headers.");
    }
    if (!navigator.gpu) found.push("This browser has no WebGPU. WebAssembly works everywhere.");
    else if (!device.gpu) found.push("WebGPU finds no GPU in this device. WebAssembly works everywhere.");
    else if (device.gpu_is_software) found.push("WebGPU is computed by the processor here, not by a GPU.");
    if (!navigator.mediaDevices?.getUserMedia) found.push("This browser gives pages no camera. Photographs work.");
  }
  return found;
}

async function findGpu() {
  const none = { name: "", software: false };
  if (!navigator.gpu) return none;
  const limit = new Promise((resolve) => setTimeout(resolve, 5000, null));
  const adapter = await Promise.race([navigator.gpu.requestAdapter().catch(() => null), limit]);
  if (!adapter) return none;
  const info = adapter.info ?? {};
  const name = [info.vendor, info.architecture, info.device, info.description].filter(Boolean).join(" ");
  const software =
    Boolean(info.isFallbackAdapter ?? adapter.isFallbackAdapter) || /swiftshader|llvmpipe|software/i.test(name);
  return { name: (name || "unnamed adapter").slice(0, 200), software };
}

function browserName(agent) {
  const brands = (agent?.brands ?? []).filter(({ brand }) => !/not.?a.?brand/i.test(brand.replace(/[^a-z.]/gi, ".")));
  const brand = brands.find(({ brand }) => brand !== "Chromium") ?? brands[0];
  if (brand) return `${brand.brand} ${brand.version}`.slice(0, 100);
  const [, name, version] = navigator.userAgent.match(/(Firefox|FxiOS|CriOS|EdgiOS|Version)\/([\d.]+)/) ?? [];
  const names = { FxiOS: "Firefox", CriOS: "Chrome", EdgiOS: "Edge", Version: "Safari" };
  return name ? `${names[name] ?? name} ${version}`.slice(0, 100) : "unknown browser";
}
