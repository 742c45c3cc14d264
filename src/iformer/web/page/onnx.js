// ONNX Runtime in WebAssembly and WebGPU.

export async function open({ artifact, backend, threads, runtime, bytes }) {
  const gpu = backend === "webgpu";
  const [bundle, wasm] = gpu
    ? ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"]
    : ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
  const ort = await import(runtime + bundle);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = { wasm: runtime + wasm };
  ort.env.wasm.numThreads = gpu ? 1 : threads;
  const session = await ort.InferenceSession.create(bytes, { executionProviders: [gpu ? "webgpu" : "wasm"] });
  const { name, dtype, layout } = artifact.input;
  const channels = artifact.preprocessing.mean.length;
  const [height, width] = artifact.preprocessing.size;
  const shape = layout === "NHWC" ? [1, height, width, channels] : [1, channels, height, width];
  const names = Object.entries(artifact.outputs);
  return {
    async run(input) {
      const found = await session.run({ [name]: new ort.Tensor(dtype, input, shape) }, names.map(([, inside]) => inside));
      const outputs = {};
      for (const [output, inside] of names) {
        const tensor = found[inside];
        outputs[output] = { data: Float32Array.from(await tensor.getData()), shape: tensor.dims };
        tensor.dispose();
      }
      return outputs;
    },
  };
}
