// Runs beside the page: decodes mp3, and gives the network's probabilities of a window of samples. `BASE` is this
// folder's address.
"use strict";

importScripts(...["spectrogram.js", "resample.js", "built/ort.wasm.min.js", "built/runtime.js", "built/network.js",
                  "built/about.js", "built/mpg123-decoder.min.js"].map(name => self.BASE + name));

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

// What is known of a window: {silent}, or {probabilities, bandwidth}, and {none} if the network has a detector.
async function classify({ y, rate }) {
  const peak = y.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (!(peak <= LOUDEST)) throw new Error("samples that are not numbers, or too large to be sound");
  if (peak < SILENCE) return { silent: true };
  const given = ABOUT.preprocessing, target = Number.isInteger(given.sample_rate) ? given.sample_rate : rate;
  const mel = Spectrogram.mel128(Resample.resample(y, rate, target), target, given);
  const input = new ort.Tensor("float32", mel, [1, given.n_mels, given.frames_kept]);
  const { probabilities, none_of_these: none } = await (await session).run({ clips: input });
  return { probabilities: Array.from(probabilities.data), bandwidth: Spectrogram.bandwidth(y, rate),
    ...(none && { none: none.data[0] }) };
}

// The samples and the rate of an mp3, as libsndfile reads them too; nothing if there is any error in it.
async function readMp3(bytes) {
  const decoder = new self["mpg123-decoder"].MPEGDecoder(), parts = [], print = console.error;
  let length = 0, rate = 0, failed = false;
  console.error = () => { failed = true; };     // this build gives errors no name, but prints each
  try {
    await decoder.ready;
    for (let at = 0; at < bytes.length && !failed; at += 1 << 18) {
      const part = decoder.decode(bytes.subarray(at, at + (1 << 18))), [left, right] = part.channelData;
      if (!part.samplesDecoded) continue;
      failed = failed || rate && rate !== part.sampleRate;
      rate = part.sampleRate;
      length += part.samplesDecoded;
      parts.push(left.map((value, k) => 0.5 * value + 0.5 * right[k]));
    }
  } finally {
    console.error = print;
    decoder.free();
  }
  if (failed || !length) return {};
  const y = new Float32Array(length);
  parts.reduce((at, part) => (y.set(part, at), at + part.length), 0);
  return { y, rate };
}

self.onmessage = async ({ data }) => {
  try {
    const found = data.mp3 ? await readMp3(data.mp3) : await classify(data);
    self.postMessage({ id: data.id, found }, found.y ? [found.y.buffer] : []);
  } catch (error) {
    self.postMessage({ id: data.id, error: error.message });
  }
};

session.then(() => self.postMessage({ ready: true }), error => self.postMessage({ failed: error.message }));
