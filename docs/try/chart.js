// What a song's card shows: bars of its genres, their course over time, and the same as a table.
"use strict";

const Chart = (() => {
  const SVG = "http://www.w3.org/2000/svg", WIDTH = 600, HEIGHT = 120, SHOWN = 0.02;
  const NONE = "none of these";     // as in classifier/songs.py

  function make(tag, attributes = {}, ...children) {
    const node = tag === "svg" || tag === "rect" || tag === "line" || tag === "title" ?
      document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const clock = seconds => {
    const [hours, minutes, rest] = [seconds / 3600, seconds / 60 % 60, seconds % 60].map(Math.floor);
    return (hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes) + `:${String(rest).padStart(2, "0")}`;
  };
  const percent = value => `${Math.round(100 * value)}\u00a0%`;
  const sorted = probabilities => Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
  const best = (probabilities, count) =>
    sorted(probabilities).slice(0, count).map(([genre, value]) => `${genre}\u00a0${percent(value)}`).join(", ");

  // What follows `NONE`, and the same of any part of a song.
  const refusal = ({ none, probabilities }) => ` ${percent(none)} (else ${best(probabilities, 3)})`;
  const said = part => part.genre === NONE ? NONE + refusal(part) : best(part.probabilities, 3);

  function bars(probabilities, colours) {
    const list = make("ul", { class: "bars", "aria-label": "Probability of each genre" });
    const shown = sorted(probabilities).filter(([, value]) => value >= SHOWN);
    for (const [genre, value] of shown) {
      const bar = make("span", { class: "bar", "aria-hidden": "true" }), fill = make("span");
      fill.style.width = `${100 * value}%`;
      fill.style.background = colours[genre];
      bar.append(fill);
      list.append(make("li", {}, make("span", {}, genre), bar, make("span", {}, percent(value))));
    }
    const rest = Object.keys(probabilities).length - shown.length;
    const others = `${rest} ${rest === 1 ? "other" : "others"} below ${percent(SHOWN)}`;
    if (rest) list.append(make("li", { class: "rest" }, others));
    return list;
  }

  // The parts of a song as [from, to, answer]; the last window overlaps the one before, and counts from its end.
  function parts(course, seconds, length) {
    return course.map((part, k) => {
      const { start } = part;
      const from = k && start < course[k - 1].start + seconds ? course[k - 1].start + seconds : start;
      return [from, Math.min(start + seconds, length), part];
    });
  }

  // Stacked columns over time, pale where none of the genres is the answer, a line where the player is, and below it the genres there. A click plays from there.
  function course(song, { labels, colours, preprocessing }, player) {
    const length = song.seconds, found = parts(song.course, preprocessing.seconds, length);
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `Genres over time, from 0:00 to ${clock(length)}; as numbers in the table below` });
    const x = time => WIDTH * time / length;
    for (const [from, to, { genre: answer, probabilities }] of found) {
      let y = HEIGHT;
      for (const genre of labels) {
        const height = HEIGHT * probabilities[genre];
        y -= height;
        svg.append(make("rect", { x: x(from), y, width: x(to) - x(from), height, fill: colours[genre],
          class: answer === NONE ? "refused" : "" },
          make("title", {}, `${clock(from)} to ${clock(to)}: ${genre} ${percent(probabilities[genre])}`)));
      }
    }
    const line = make("line", { y1: 0, y2: HEIGHT, class: "now", "vector-effect": "non-scaling-stroke" });
    svg.append(line);
    const now = make("p", { class: "now" });
    const follow = () => {
      const time = player.currentTime, part = found.find(([from, to]) => time >= from && time < to);
      line.setAttribute("x1", x(time));
      line.setAttribute("x2", x(time));
      now.textContent = `${clock(time)}: ${part ? said(part[2]) : "silence"}`;
    };
    player.addEventListener("timeupdate", follow);
    svg.addEventListener("click", event => {
      const box = svg.getBoundingClientRect();
      player.currentTime = length * (event.clientX - box.left) / box.width;
      player.play();
    });
    follow();
    const pale = song.course.some(({ genre }) => genre === NONE) ? `; pale: ${NONE}` : "";
    const ends = make("p", { class: "axis", "aria-hidden": "true" }, make("span", {}, "0:00"),
      make("span", {}, `click to play from there${pale}`), make("span", {}, clock(length)));
    return make("div", { class: "course" }, svg, ends, now);
  }

  function table(song, { labels, preprocessing }) {
    const detected = song.none === undefined ? [] : [NONE];
    const heads = ["from", ...labels, ...detected].map(name => make("th", { scope: "col" }, name));
    const rows = parts(song.course, preprocessing.seconds, song.seconds).map(([from, , { probabilities, none }]) =>
      make("tr", {}, make("th", { scope: "row" }, clock(from)),
        ...[...labels.map(genre => probabilities[genre]), ...detected.map(() => none)]
          .map(value => make("td", {}, percent(value)))));
    const whole = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
    return make("details", {}, make("summary", {}, "As a table"), make("div", { class: "scroll" }, whole));
  }

  return { NONE, make, bars, course, table, refusal, percent };
})();
