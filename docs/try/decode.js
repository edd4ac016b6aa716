// From a file to mono windows: mpg123 decodes mp3, the browser all else, at the file's own rate, which its header tells.
"use strict";

const Decode = (() => {
  const LONGEST = 2 * 3600, SHORTEST = 1;       // seconds: a browser holds a song decoded, 1.3 GB an hour in stereo
  const WHOLE = 0.99, NARROW = 0.6;             // as in classifier/songs.py
  const MP3 = [44100, 48000, 32000];
  const AAC = [96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350];

  function text(bytes, at, length) {
    return String.fromCharCode(...bytes.subarray(at, at + length));
  }

  function find(bytes, word, end) {
    let at = -1;
    do {
      at = bytes.indexOf(word.charCodeAt(0), at + 1);
    } while (at >= 0 && at < end && text(bytes, at, word.length) !== word);
    return at < end ? at : -1;
  }

  // Sample rate of the frame of MPEG audio or AAC that begins here, 0 if none does.
  function frameRate(bytes, at) {
    if (bytes[at] !== 0xff || (bytes[at + 1] & 0xe0) !== 0xe0) return 0;
    const version = bytes[at + 1] >> 3 & 3, layer = bytes[at + 1] >> 1 & 3, code = bytes[at + 2] >> 2 & 3;
    const bits = bytes[at + 2] >> 4;
    if (layer === 0) return (version & 2) && AAC[bytes[at + 2] >> 2 & 15] || 0;
    return version === 1 || code === 3 || bits === 15 ? 0 : MP3[code] / [4, 0, 2, 1][version];
  }

  // Where a file begins, after tags.
  function beginning(bytes) {
    return text(bytes, 0, 3) === "ID3" ? 10 + (bytes[6] << 21 | bytes[7] << 14 | bytes[8] << 7 | bytes[9]) : 0;
  }

  // Whether it is MPEG audio without a container.
  function isMpeg(bytes) {
    const at = beginning(bytes);
    return frameRate(bytes, at) > 0 && (bytes[at + 1] >> 1 & 3) > 0;
  }

  // Sample rate in Hz of a file's header; 0 if it is of a format that is not known here.
  function headerRate(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let at = beginning(bytes);
    const four = text(bytes, at, 4), near = at + 65536;
    if (four === "RIFF" || four === "RF64") {
      const chunk = find(bytes, "fmt ", near);
      return chunk < 0 ? 0 : view.getUint32(chunk + 12, true);
    }
    if (four === "fLaC") return view.getUint32(at + 18) >>> 12;
    if (four === "OggS") {
      const vorbis = find(bytes, "\x01vorbis", near), flac = find(bytes, "fLaC", near);
      if (find(bytes, "OpusHead", near) >= 0) return 48000;
      return vorbis >= 0 ? view.getUint32(vorbis + 12, true) : flac >= 0 ? view.getUint32(flac + 18) >>> 12 : 0;
    }
    if (four === "FORM") {                      // AIFF: a float of 80 bits
      const chunk = find(bytes, "COMM", near);
      return chunk < 0 ? 0 : view.getUint32(chunk + 18) / 2 ** (16414 - view.getUint16(chunk + 16));
    }
    if (text(bytes, 4, 4) === "ftyp") {
      const entry = find(bytes, "mp4a", bytes.length);
      return entry < 0 ? 0 : view.getUint16(entry + 28);
    }
    for (const end = Math.min(near, bytes.length - 4); at < end; at++) {
      const rate = frameRate(bytes, at);
      if (rate) return rate;
    }
    return 0;
  }

  // Seconds that the player finds, NaN if it finds none.
  function duration(address) {
    return new Promise(resolve => {
      const player = new Audio();
      player.onloadedmetadata = () => resolve(player.duration);
      player.onerror = () => resolve(NaN);
      player.preload = "metadata";
      player.src = address;
    });
  }

  // A file's samples as an AudioBuffer has them, and notes on it; an Error with the reason if there are none.
  // `readMp3` gives {y, rate} of the bytes of an mp3, or {} if it does not read it.
  async function decode(file, address, usual, readMp3) {
    if (!file.size) throw new Error("the file is empty");
    const seconds = await duration(address);
    if (Number.isFinite(seconds) && seconds > LONGEST) {        // Infinity is that of a recording made in a browser
      throw new Error("longer than 2 hours, too much for a browser's memory: predict.py reads it in parts");
    }
    const content = await file.arrayBuffer().catch(() => { throw new Error("it cannot be read"); });
    const bytes = new Uint8Array(content), rate = headerRate(bytes), notes = [];
    const { y, rate: own } = isMpeg(bytes) ? await readMp3(bytes) : {};
    if (y) {
      const audio = { numberOfChannels: 1, getChannelData: () => y, length: y.length, sampleRate: own };
      return { audio, positive: 1, notes };
    }
    let context;
    try {
      context = new OfflineAudioContext(1, 1, rate);
    } catch {                                   // a rate of 0, or one that this browser does not have
      context = new OfflineAudioContext(1, 1, usual);
      notes.push(`resampled by the browser to ${usual} Hz: predict.py may answer a little differently`);
    }
    try {
      const audio = await context.decodeAudioData(content);
      return { audio, positive: correction(audio), notes };
    } catch {
      throw new Error("not audio that this browser can read, or damaged");
    }
  }

  // Where the windows of a track begin and end, in samples: as classifier/songs.py reads it.
  function windows(length, rate, seconds) {
    const size = Math.floor(seconds * rate), found = [];
    if (!length) throw new Error("no audio in it");
    for (let start = 0; start + size <= length; start += size) found.push([start, start + size]);
    const rest = length - found.length * size;
    if (!found.length && rest < SHORTEST * rate) throw new Error(`only ${(rest / rate).toFixed(2)} seconds of audio`);
    if (!found.length) return [[0, length]];
    if (rest >= SHORTEST * rate) found.push([length - size, length]);
    return found;
  }

  // Chromium decodes to 16 bits, and divides positive samples by 32767, negative ones by 32768. The factor that makes
  // them alike; 1 unless the first minute's positive samples are such fractions.
  function correction(audio) {
    const y = audio.getChannelData(0), end = Math.min(y.length, 60 * audio.sampleRate);
    for (let k = 0; k < end; k++) {
      if (y[k] > 0 && Math.abs(y[k] * 32767 - Math.round(y[k] * 32767)) > 0.004) return 1;
    }
    return 32767 / 32768;
  }

  // The mean of the channels from `start` to `end`, repeated up to a window's length where that is clearly less.
  function samples(audio, start, end, seconds, positive) {
    const size = Math.floor(seconds * audio.sampleRate), length = end - start, weight = 1 / audio.numberOfChannels;
    const y = new Float32Array(length >= WHOLE * size ? length : size);
    for (let channel = 0; channel < audio.numberOfChannels; channel++) {
      const part = audio.getChannelData(channel).subarray(start, end);
      for (let k = 0; k < length; k++) y[k] += weight * (part[k] > 0 ? positive * part[k] : part[k]);
    }
    for (let k = length; k < y.length; k++) y[k] = y[k - length];
    return y;
  }

  // A line if the highs are missing that the network knows, else nothing.
  function narrow(bandwidth, reach) {
    return bandwidth >= NARROW * reach ? [] : [`nothing above ${(bandwidth / 1000).toFixed(1)} kHz, and the network ` +
      `learned clips with up to ${(reach / 1000).toFixed(0)} kHz: it may err more`];
  }

  return { decode, windows, samples, narrow, headerRate };
})();
