// LiteRT in WebAssembly and WebGPU. It loads once in a worker.

export async function open({ artifact, backend, threads, runtime, bytes }) {
  const { loadLiteRt, loadAndCompile, Tensor } = await import(`${runtime}index.js`);
  // in a worker, LiteRT would look for its parts beside the worker's own script
  self.Module = {
    locateFile: (file) => runtime + file,
    mainScriptUrlOrBlob: `${runtime}litert_wasm_threaded_internal.js`,
  };
  const gpu = backend === "litert-webgpu";
  // without JSPI a network that the GPU takes in parts fails with an internal error instead of a reason
  await loadLiteRt(runtime, { threads: threads > 1, jspi: gpu && "Suspending" in WebAssembly });
  const model = await loadAndCompile(bytes, {
    accelerator: gpu ? "webgpu" : "wasm",
    cpuOptions: { numThreads: threads },
    gpuOptions: { precision: "fp32" },
  });
  // LiteRT runs on the processor whatever the GPU lacks, and says so only in the browser's console
  if (gpu && (model.options.accelerator !== "webgpu" || !model.isFullyAccelerated)) {
    throw new Error("LiteRT has no WebGPU kernels for some operations of this network");
  }
  const { shape } = model.getInputDetails()[0];
  const names = Object.entries(artifact.outputs);
  return {
    async run(input) {
      const tensor = new Tensor(input, Array.from(shape));
      const fed = gpu ? await tensor.moveTo("webgpu") : tensor;
      const found = await model.run({ [artifact.input.name]: fed });
      fed.delete();
      const outputs = {};
      for (const [output, inside] of names) {
        const { shape: dims } = model.getOutputDetails().find((details) => details.name === inside);
        const onHost = gpu ? await found[inside].moveTo("wasm") : found[inside];
        outputs[output] = { data: Float32Array.from(onHost.toTypedArray()), shape: Array.from(dims) };
        onHost.delete();
      }
      return outputs;
    },
  };
}
