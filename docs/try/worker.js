// Runs beside the page: one window of samples in, the network's probabilities out. `BASE` is the address of this folder.
"use strict";

importScripts(...["spectrogram.js", "resample.js", "built/ort.wasm.min.js", "built/runtime.js", "built/network.js",
                  "built/about.js"].map(name => self.BASE + name));

const SILENCE = 1e-4, LOUDEST = 1e6;        // amplitudes, as in audio/transforms.py and audio/decoding.py

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function load() {
  ort.env.wasm.numThreads = 1;              // more need headers that a plain server does not send
  const address = (content, type) => URL.createObjectURL(new Blob([content], { type }));
  ort.env.wasm.wasmPaths = { mjs: address(RUNTIME.glue, "text/javascript"),
                             wasm: address(await unpack(RUNTIME.wasm), "application/wasm") };
  return ort.InferenceSession.create(await unpack(NETWORK));
}

const session = load();

// What is known of a window: {silent}, or {probabilities, bandwidth}.
async function classify({ y, rate }) {
  const peak = y.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (!(peak <= LOUDEST)) throw new Error("samples that are not numbers, or too large to be sound");
  if (peak < SILENCE) return { silent: true };
  const given = ABOUT.preprocessing, target = Number.isInteger(given.sample_rate) ? given.sample_rate : rate;
  const mel = Spectrogram.mel128(Resample.resample(y, rate, target), target, given);
  const input = new ort.Tensor("float32", mel, [1, given.n_mels, given.frames_kept]);
  const { probabilities } = await (await session).run({ clips: input });
  return { probabilities: Array.from(probabilities.data), bandwidth: Spectrogram.bandwidth(y, rate) };
}

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ id: data.id, found: await classify(data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: error.message });
  }
};

session.then(() => self.postMessage({ ready: true }), error => self.postMessage({ failed: error.message }));
