// What a song's card shows: bars of its genres, their course over time, and the same as a table.
"use strict";

const Chart = (() => {
  const SVG = "http://www.w3.org/2000/svg", WIDTH = 600, HEIGHT = 120, SHOWN = 0.02;

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

  // The parts of a song as [from, to, probabilities]; the last window overlaps the one before, and counts from its end.
  function parts(course, seconds, length) {
    return course.map(({ start, probabilities }, k) => {
      const from = k && start < course[k - 1].start + seconds ? course[k - 1].start + seconds : start;
      return [from, Math.min(start + seconds, length), probabilities];
    });
  }

  // Stacked columns over time, a line where the player is, and below it the genres there. A click plays from there.
  function course(song, { labels, colours, preprocessing }, player) {
    const length = song.seconds, found = parts(song.course, preprocessing.seconds, length);
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `Genres over time, from 0:00 to ${clock(length)}; as numbers in the table below` });
    const x = time => WIDTH * time / length;
    for (const [from, to, probabilities] of found) {
      let y = HEIGHT;
      for (const genre of labels) {
        const height = HEIGHT * probabilities[genre];
        y -= height;
        svg.append(make("rect", { x: x(from), y, width: x(to) - x(from), height, fill: colours[genre] },
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
      now.textContent = `${clock(time)}: ${part ? best(part[2], 3) : "silence"}`;
    };
    player.addEventListener("timeupdate", follow);
    svg.addEventListener("click", event => {
      const box = svg.getBoundingClientRect();
      player.currentTime = length * (event.clientX - box.left) / box.width;
      player.play();
    });
    follow();
    const ends = make("p", { class: "axis", "aria-hidden": "true" }, make("span", {}, "0:00"),
      make("span", {}, "click to play from there"), make("span", {}, clock(length)));
    return make("div", { class: "course" }, svg, ends, now);
  }

  function table(song, { labels, preprocessing }) {
    const heads = ["from", ...labels].map(name => make("th", { scope: "col" }, name));
    const rows = parts(song.course, preprocessing.seconds, song.seconds).map(([from, , probabilities]) =>
      make("tr", {}, make("th", { scope: "row" }, clock(from)),
        ...labels.map(genre => make("td", {}, percent(probabilities[genre])))));
    const whole = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
    return make("details", {}, make("summary", {}, "As a table"), make("div", { class: "scroll" }, whole));
  }

  return { make, bars, course, table, best, percent, sorted };
})();
