// The page: takes files, has them answered one after another, and shows a card for each.
"use strict";

const { NONE, make, bars, course, table, refusal, percent } = Chart;
const at = id => document.getElementById(id);
const SERVE = "run `python -m http.server -d docs/try` and open http://localhost:8000";

// ---- the network, in a worker -------------------------------------------------------------------------------------

// A page opened as a file may not start a worker from a file, but from a text that loads that file.
function startNetwork() {
  const base = JSON.stringify(new URL(".", document.baseURI).href);
  const text = `self.BASE = ${base}; importScripts(self.BASE + "worker.js");`;
  const worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" }))), waiting = new Map();
  let count = 0, broken = "";
  const fail = reason => {
    broken = `the network did not start (${reason})`;
    say(`The network did not start: ${reason}. If this page was opened as a file, ${SERVE}.`);
    waiting.forEach(({ reject }) => reject(new Error(broken)));
    waiting.clear();
  };
  worker.onerror = event => fail(event.message || "its script cannot be loaded");
  worker.onmessage = ({ data }) => {
    if (data.failed) fail(data.failed);
    if (!waiting.has(data.id)) return;
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.error) reject(new Error(data.error)); else resolve(data.found);
  };
  return (asked, given = []) => new Promise((resolve, reject) => {      // the buffers that are given are gone here
    if (broken) return reject(new Error(broken));
    waiting.set(count, { resolve, reject });
    worker.postMessage({ id: count++, ...asked }, given);
  });
}

// The answer for a file, as predict.py --json gives it; `progress` is called with the share that is done.
async function answer(file, address, ask, progress) {
  const { labels, threshold, preprocessing: { seconds, sample_rate: usual } } = ABOUT;
  const round = value => Math.round(1e4 * value) / 1e4;
  const named = ({ probabilities, none }) => ({
    genre: none > threshold ? NONE : labels[probabilities.indexOf(Math.max(...probabilities))],
    probabilities: Object.fromEntries(labels.map((genre, k) => [genre, round(probabilities[k])])),
    ...(threshold && { none: round(none) }) });
  const { audio, positive, notes } = await Decode.decode(
    file, address, Number.isInteger(usual) ? usual : 44100, mp3 => ask({ mp3 }));
  const rate = audio.sampleRate, places = Decode.windows(audio.length, rate, seconds), found = [];
  let widest = 0;
  for (const [k, [start, end]] of places.entries()) {
    progress(k / places.length);
    const y = Decode.samples(audio, start, end, seconds, positive), said = await ask({ y, rate }, [y.buffer]);
    if (said.silent) continue;
    widest = Math.max(widest, said.bandwidth);
    found.push({ start: Math.round(100 * start / rate) / 100, ...said });
  }
  if (!found.length) throw new Error("silence");
  notes.push(...Decode.narrow(widest, (Number.isInteger(usual) ? usual : rate) / 2));
  const mean = value => found.reduce((sum, said) => sum + value(said), 0) / found.length;
  const whole = { probabilities: labels.map((genre, k) => mean(said => said.probabilities[k])),
    none: mean(said => said.none) };
  return { ...named(whole), course: found.map(({ start, ...said }) => ({ start, ...named(said) })),
    ...(notes.length ? { note: notes.join("; ") } : {}), seconds: audio.length / rate };
}

// ---- songs --------------------------------------------------------------------------------------------------------

const songs = [], waiting = [];     // every song that was asked for, and those that have no answer yet
let ask, busy = false;

function say(line) {
  at("status").textContent = line;
}

function summary() {
  const done = songs.filter(song => song.genre || song.error), counts = new Map();
  for (const { genre } of done) counts.set(genre || "no answer", (counts.get(genre || "no answer") || 0) + 1);
  const listed = [...counts].sort((a, b) => b[1] - a[1])
    .map(([name, count]) => songs.length > 1 ? `${count} ${name}` : name).join(", ");
  const left = songs.length - done.length;
  at("save").hidden = !done.length;
  say(left ? `Listening: ${done.length} of ${songs.length} done.` :
    `${songs.length} ${songs.length === 1 ? "song" : "songs"}: ${listed}.`);
}

function add(files) {
  const heard = files.filter(({ file, name }) =>
    ABOUT.endings.includes(name.slice(name.lastIndexOf(".")).toLowerCase()) || file.type.startsWith("audio/"));
  const others = files.filter(each => !heard.includes(each));
  at("passed").textContent = others.length ?
    `Passed over, no audio: ${others.slice(0, 3).map(({ name }) => name).join(", ")}` +
    (others.length > 3 ? ` and ${others.length - 3} more` : "") : "";
  for (const { file, name } of heard) {
    const bar = make("progress", { max: 1, value: 0, "aria-label": `Progress of ${name}` });
    const card = make("article", { "aria-busy": "true" }, make("h2", {}, name), bar);
    const song = { file: name };
    songs.push(song);
    waiting.push({ song, file, card, bar });
    at("songs").append(card);
  }
  if (heard.length) work();
}

async function work() {
  if (busy) return;
  busy = true;
  ask = ask || startNetwork();
  for (let next; (next = waiting.shift());) {
    const { song, file, card, bar } = next, address = URL.createObjectURL(file);
    summary();
    bar.removeAttribute("value");              // of unknown length, as long as it is decoded
    try {
      Object.assign(song, await answer(file, address, ask, share => { bar.value = share; }));
      show(song, card, address);
    } catch (error) {
      song.error = error.message;
      URL.revokeObjectURL(address);
      card.append(make("p", { class: "error" }, `No answer: ${song.error}.`));
    }
    bar.remove();
    card.removeAttribute("aria-busy");
  }
  busy = false;
  summary();
}

function show(song, card, address) {
  const player = make("audio", { controls: "", preload: "metadata", src: address, "aria-label": `Play ${song.file}` });
  const known = song.genre in song.probabilities;
  card.append(make("p", { class: "answer" }, make("strong", {}, song.genre),
    known ? ` ${percent(song.probabilities[song.genre])}` : refusal(song)));
  if (song.note) card.append(make("p", { class: "note" }, `Note: ${song.note}.`));
  card.append(player);
  const figure = make("div", { class: "figure" }, bars(song.probabilities, ABOUT.colours));
  if (song.course.length > 1) figure.append(course(song, ABOUT, player));
  card.append(figure, table(song, ABOUT));
}

function save() {
  const found = songs.filter(song => song.genre || song.error).map(({ seconds, ...rest }) => rest);
  const address = URL.createObjectURL(new Blob([JSON.stringify(found, null, 1)], { type: "application/json" }));
  make("a", { href: address, download: "genres.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// ---- files, folders, and what is dropped --------------------------------------------------------------------------

// The files of a dropped entry, those of a folder with their path in it, in alphabetical order.
async function walk(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: entry.fullPath.slice(1) }];
  }
  const reader = entry.createReader(), inside = [];
  for (let some; (some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length;) {
    inside.push(...some);                   // a hundred at a time
  }
  inside.sort((a, b) => a.name.localeCompare(b.name));
  return (await Promise.all(inside.filter(each => !each.name.startsWith(".")).map(walk))).flat();
}

async function drop(event) {
  event.preventDefault();
  document.body.classList.remove("over");
  const plain = [...event.dataTransfer.files].map(file => ({ file, name: file.name }));
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
  try {
    add(entries.length ? (await Promise.all(entries.map(walk))).flat() : plain);
  } catch {                                 // Chromium's answer to folders on a page that was opened as a file
    add(plain.filter((each, k) => !entries[k].isDirectory));
    at("passed").textContent = "This browser does not open a dropped folder here: use the button instead.";
  }
}

function choose(event) {
  add([...event.target.files].map(file => ({ file, name: file.webkitRelativePath || file.name })));
  event.target.value = "";                  // the same file may be chosen again
}

function begin() {
  if (typeof ABOUT === "undefined") {
    at("take").hidden = true;
    say("The network is not here yet: run make page in a clone of the repository, and open it there.");
    return;
  }
  const { labels, accuracy, threshold, refused, preprocessing } = ABOUT;
  at("network").textContent = `The network knows ${labels.length} genres: ${labels.join(", ")}.` +
    (threshold ? ` Other sounds are “${NONE}” if they are like those it has learned: ${refused.join(", ")}.` :
      " It always answers with one of them.") +
    (accuracy ? " Of 100 clips by artists it has never heard, its most probable genre is right on " +
      `${Math.round(100 * accuracy)}.` : "") +
    ` It hears ${preprocessing.seconds} seconds at a time; a song's answer is the mean.`;
  at("files").onchange = at("folder").onchange = choose;
  at("save").onclick = save;
  document.ondragover = event => {
    event.preventDefault();
    document.body.classList.add("over");
  };
  document.ondragleave = event => event.relatedTarget || document.body.classList.remove("over");
  document.ondrop = drop;
}

begin();
