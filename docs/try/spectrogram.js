// mel128 of audio/transforms.py, with the same numbers: 128 mel bands at 128 moments of a window, in dB below its
// maximum.
"use strict";

const Spectrogram = (() => {
  // In-place complex FFT of `size`, a power of two.
  function makeFFT(size) {
    const cos = new Float64Array(size / 2), sin = new Float64Array(size / 2), order = new Uint32Array(size);
    for (let k = 0; k < size / 2; k++) {
      cos[k] = Math.cos(2 * Math.PI * k / size);
      sin[k] = Math.sin(2 * Math.PI * k / size);
    }
    for (let k = 1; k < size; k++) order[k] = order[k >> 1] >> 1 | (k & 1 ? size >> 1 : 0);
    return (re, im) => {
      for (let k = 0; k < size; k++) {
        const other = order[k];
        if (other > k) {
          [re[k], re[other]] = [re[other], re[k]];
          [im[k], im[other]] = [im[other], im[k]];
        }
      }
      for (let half = 1, step = size / 2; half < size; half *= 2, step /= 2) {
        for (let start = 0; start < size; start += 2 * half) {
          for (let j = 0; j < half; j++) {
            const a = start + j, b = a + half, c = cos[j * step], s = sin[j * step];
            const x = re[b] * c + im[b] * s, y = im[b] * c - re[b] * s;
            re[b] = re[a] - x;
            im[b] = im[a] - y;
            re[a] += x;
            im[a] += y;
          }
        }
      }
    };
  }

  // Calls `use(power, k)` with the power spectrum of each of `count` frames; `fill(array, k)` writes frame k.
  // Two real frames share a complex FFT: one is its real part, the other its imaginary part.
  function powerSpectra(size, count, fill, use) {
    const fft = makeFFT(size), re = new Float64Array(size), im = new Float64Array(size);
    const first = new Float64Array(size / 2 + 1), second = new Float64Array(size / 2 + 1);
    for (let k = 0; k < count; k += 2) {
      fill(re, k);
      if (k + 1 < count) fill(im, k + 1); else im.fill(0);
      fft(re, im);
      for (let bin = 0; bin <= size / 2; bin++) {
        const mirror = (size - bin) % size;
        const evenRe = re[bin] + re[mirror], oddRe = re[bin] - re[mirror];
        const evenIm = im[bin] + im[mirror], oddIm = im[bin] - im[mirror];
        first[bin] = (evenRe * evenRe + oddIm * oddIm) / 4;
        second[bin] = (evenIm * evenIm + oddRe * oddRe) / 4;
      }
      use(first, k);
      if (k + 1 < count) use(second, k + 1);
    }
  }

  // Triangles on Slaney's mel scale, as librosa.filters.mel: of each band its first bin and the weights from there on.
  function melFilter(rate, size, count) {
    const step = Math.log(6.4) / 27, top = rate / 2;
    const last = top < 1000 ? top * 3 / 200 : 15 + Math.log(top / 1000) / step;
    const edges = Array.from({ length: count + 2 }, (_, k) => {
      const mel = last * k / (count + 1);
      return mel < 15 ? mel * 200 / 3 : 1000 * Math.exp(step * (mel - 15));
    });
    return Array.from({ length: count }, (_, k) => {
      const [low, centre, high] = edges.slice(k, k + 3), weights = [];
      const first = Math.ceil(low * size / rate);
      for (let bin = first; bin <= size / 2 && bin * rate / size < high; bin++) {
        const hz = bin * rate / size, height = Math.min((hz - low) / (centre - low), (high - hz) / (high - centre));
        weights.push(Math.fround(Math.fround(Math.max(height, 0)) * 2 / (high - low)));
      }
      return { first, weights };
    });
  }

  // Mono samples to a Float32Array of bands x frames; `given` is the preprocessing in the network's metadata.
  function mel128(y, rate, given) {
    const { n_fft: size, hop_length: hop, n_mels: bands, frames_kept: kept, top_db: range } = given;
    const count = 1 + Math.floor(y.length / hop), filter = melFilter(rate, size, bands);
    const hann = Float64Array.from({ length: size }, (_, k) => 0.5 - 0.5 * Math.cos(2 * Math.PI * k / size));
    const fill = (frame, k) => {
      for (let j = 0, at = k * hop - size / 2; j < size; j++, at++) {
        frame[j] = at >= 0 && at < y.length ? y[at] * hann[j] : 0;
      }
    };
    const all = new Float64Array(count * bands);
    let loudest = 1e-10;
    powerSpectra(size, count, fill, (power, k) => {
      filter.forEach(({ first, weights }, band) => {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * power[first + j];
        all[k * bands + band] = sum;
        if (sum > loudest) loudest = sum;
      });
    });
    const mel = new Float32Array(bands * kept);
    for (let j = 0; j < kept; j++) {
      const k = Math.floor((j + 0.5) / kept * count);
      for (let band = 0; band < bands; band++) {
        const db = 10 * Math.log10(Math.max(all[k * bands + band], 1e-10) / loudest);
        mel[band * kept + j] = Math.min(Math.max(db, -range), 0);
      }
    }
    return mel;
  }

  // The highest frequency (Hz) with more than 1e-10 of the strongest one's power: classifier/songs.py.
  function bandwidth(y, rate) {
    const size = 2048, count = Math.ceil(Math.floor(y.length / size) / 4), mean = new Float64Array(size / 2 + 1);
    const hann = Float64Array.from({ length: size }, (_, k) => 0.5 - 0.5 * Math.cos(2 * Math.PI * k / (size - 1)));
    const fill = (frame, k) => {
      for (let j = 0; j < size; j++) frame[j] = y[4 * k * size + j] * hann[j];
    };
    powerSpectra(size, count, fill, power => power.forEach((value, bin) => { mean[bin] += value; }));
    const enough = 1e-10 * mean.reduce((a, b) => Math.max(a, b));
    let bin = size / 2;
    while (bin > 0 && !(mean[bin] > enough)) bin--;
    return bin ? bin * rate / size : rate / 2;
  }

  return { mel128, bandwidth };
})();
