// What a unit sounds like: heat map, unit explorer, and utterances with their phones and units.
"use strict";

// -- audio

const player = new Audio();
let stop_at = Infinity;
let stopped = () => {};

player.addEventListener("timeupdate", () => { if (player.currentTime >= stop_at) player.pause(); });
player.addEventListener("pause", () => stopped());

function play(clip, start, end, when_stopped) {
  stopped();
  stopped = when_stopped || (() => {});
  stop_at = end;
  const begin = () => { player.currentTime = start; player.play(); };
  if (player.dataset.clip === clip.id) { begin(); return; }
  player.dataset.clip = clip.id;
  player.src = clip.audio;
  player.addEventListener("loadedmetadata", begin, { once: true });
}

function bytes_of(clip) {
  const binary = atob(clip.audio.slice(clip.audio.indexOf(",") + 1));
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}

const decoded = new Map();

// The samples of a clip at 16 kHz, decoded once.
function samples_of(clip) {
  if (!decoded.has(clip.id)) {
    const context = new OfflineAudioContext(1, 16000, 16000);
    decoded.set(clip.id, context.decodeAudioData(bytes_of(clip).buffer)
      .then((buffer) => buffer.getChannelData(0)));
  }
  return decoded.get(clip.id);
}

// Magnitudes of a Fourier transform of 2^n real samples, Hann window (Cooley and Tukey 1965).
function magnitudes(samples, start, size) {
  const real = new Float32Array(size);
  const imaginary = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    let j = 0;
    for (let bit = 1, value = i; bit < size; bit <<= 1, value >>= 1) j = (j << 1) | (value & 1);
    const window = 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size);
    real[j] = (samples[start + i] || 0) * window;
  }
  for (let half = 1; half < size; half <<= 1) {
    for (let k = 0; k < half; k++) {
      const angle = (-Math.PI * k) / half;
      const cosine = Math.cos(angle);
      const sine = Math.sin(angle);
      for (let even = k; even < size; even += 2 * half) {
        const odd = even + half;
        const x = real[odd] * cosine - imaginary[odd] * sine;
        const y = real[odd] * sine + imaginary[odd] * cosine;
        real[odd] = real[even] - x; imaginary[odd] = imaginary[even] - y;
        real[even] += x; imaginary[even] += y;
      }
    }
  }
  return Float32Array.from({ length: size / 2 }, (_, i) => Math.hypot(real[i], imaginary[i]));
}

const HEAT = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

function heat(share) {
  const place = Math.max(0, Math.min(1, share)) * (HEAT.length - 1);
  const low = Math.min(HEAT.length - 2, Math.floor(place));
  return HEAT[low].map((value, i) => value + (HEAT[low + 1][i] - value) * (place - low));
}

// Spectrogram of [start, end) seconds, with the part [from, to) left bright.
async function draw_spectrogram(canvas, clip, start, end, from, to) {
  const samples = await samples_of(clip);
  const size = 256;
  const width = 120;
  const height = size / 2;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let x = 0; x < width; x++) {
    const time = start + ((end - start) * x) / width;
    const column = magnitudes(samples, Math.round(time * 16000) - size / 2, size);
    const shade = time >= from && time < to ? 1 : 0.55;
    for (let y = 0; y < height; y++) {
      const level = (20 * Math.log10(column[height - 1 - y] + 1e-4) + 60) / 85;
      image.data.set([...heat(level).map((value) => value * shade), 255], 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
}

// -- units

// Runs of equal units of a clip: [{unit, start, end}] in seconds.
function runs_of(clip, iteration, frame_ms) {
  const ids = clip.units[iteration] || [];
  const found = [];
  ids.forEach((unit, frame) => {
    const last = found[found.length - 1];
    if (last && last.unit === unit) last.end = ((frame + 1) * frame_ms) / 1000;
    else found.push({ unit, start: (frame * frame_ms) / 1000, end: ((frame + 1) * frame_ms) / 1000 });
  });
  return found;
}

// The longest runs of a unit, at most two of one clip, so that speakers and words vary.
function examples_of(clips, iteration, unit, frame_ms, most) {
  const found = [];
  for (const clip of clips) {
    if (!clip.audio) continue;
    runs_of(clip, iteration, frame_ms)
      .filter((run) => run.unit === unit)
      .sort((a, b) => (b.end - b.start) - (a.end - a.start))
      .slice(0, 2)
      .forEach((run) => found.push({ clip, ...run }));
  }
  return found.sort((a, b) => (b.end - b.start) - (a.end - a.start)).slice(0, most);
}

function unit_colour(unit) {
  return `hsl(${(unit * 137.508) % 360} 65% 72%)`;
}

function phone_at(clip, time) {
  const found = clip.phones.find(([, start, end]) => time >= start && time < end);
  return found ? found[0] : "";
}

// Units in the order of their most likely phone, as the heat map shows them.
function order_of(units) {
  const peak = units.shares.map((row) => row.indexOf(Math.max(...row)));
  return units.shares.map((_, unit) => unit).filter((unit) => units.use[unit] > 0).sort((a, b) =>
    peak[a] - peak[b] || Math.max(...units.shares[b]) - Math.max(...units.shares[a]));
}

function heat_map(units, choose) {
  const order = order_of(units);
  const canvas = h("canvas", {
    class: "heat", role: "img", tabindex: "0",
    "aria-label": "share of each phone in each unit; arrow keys move, Enter chooses a unit",
  });
  canvas.width = order.length;
  canvas.height = units.phones.length;
  canvas.style.height = `${Math.max(180, 10 * units.phones.length)}px`;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  order.forEach((unit, x) => units.shares[unit].forEach((share, y) => {
    image.data.set([...heat(share / 100), 255], 4 * (y * canvas.width + x));
  }));
  context.putImageData(image, 0, 0);
  const note = h("p", { class: "small dim", "aria-live": "polite" },
    "Point at a cell to see its unit and phone; click to hear the unit.");
  let x = 0;
  let y = 0;
  const say = () => {
    const unit = order[x];
    note.textContent = `unit ${unit}: ${units.shares[unit][y]} % are ${units.phones[y]}`;
  };
  const locate = (event) => {
    const box = canvas.getBoundingClientRect();
    x = Math.min(canvas.width - 1, Math.floor(((event.clientX - box.left) / box.width) * canvas.width));
    y = Math.min(canvas.height - 1, Math.floor(((event.clientY - box.top) / box.height) * canvas.height));
    say();
  };
  canvas.addEventListener("mousemove", locate);
  canvas.addEventListener("click", (event) => { locate(event); choose(order[x]); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      x = Math.max(0, Math.min(canvas.width - 1, x + step[0]));
      y = Math.max(0, Math.min(canvas.height - 1, y + step[1]));
      say();
    } else if (event.key === "Enter") choose(order[x]);
    else return;
    event.preventDefault();
  });
  const names = h("div", { class: "names", "aria-hidden": "true" }, units.phones.map((phone, row) =>
    h("span", { style: `top:${(100 * (row + 0.5)) / units.phones.length}%` }, phone)));
  return h("div", {}, h("div", { class: "heatbox" }, names, canvas), note);
}

function bars(rows) {
  return rows.map(([name, share]) => h("div", { class: "bar" },
    h("span", { title: name }, name),
    h("div", { class: "fill", style: `width:${share}%` }),
    h("span", { class: "dim" }, `${share} %`)));
}

class UnitExplorer {
  constructor(data, show_clip) {
    this.data = data;
    this.show_clip = show_clip;
    this.names = Object.keys(data.units);
    this.iteration = this.names[this.names.length - 1];
    this.unit = 0;
    this.most = data.units[this.iteration].n_clusters <= 100 ? 12 : 4;
    this.choice = h("select", { "aria-label": "iteration", onchange: (event) => {
      this.iteration = event.target.value;
      this.show(0);
    } }, this.names.map((name) => h("option", { value: name, selected: name === this.iteration || null }, name)));
    this.input = h("input", { type: "number", min: 0, value: 0, "aria-label": "unit", style: "width:6rem",
      onchange: () => this.show(Number(this.input.value)) });
    this.body = h("div", {});
    this.element = h("div", {},
      h("div", { class: "row controls no-print" }, this.choice,
        h("button", { onclick: () => this.show(this.unit - 1), "aria-label": "previous unit" }, "‹"),
        this.input,
        h("button", { onclick: () => this.show(this.unit + 1), "aria-label": "next unit" }, "›")),
      this.body);
  }

  show(unit, iteration = this.iteration) {
    this.iteration = iteration;
    this.choice.value = iteration;
    const units = this.data.units[iteration];
    const size = units.n_clusters;
    this.unit = Number.isFinite(unit) ? ((Math.round(unit) % size) + size) % size : 0;
    this.input.value = this.unit;
    this.input.max = size - 1;
    const total = units.use.reduce((sum, count) => sum + count, 0);
    const phones = !units.shares ? [] : units.shares[this.unit]
      .map((share, index) => [units.phones[index], share])
      .filter(([, share]) => share >= 2).sort((a, b) => b[1] - a[1]).slice(0, 6);
    const examples = examples_of(this.data.clips, iteration, this.unit, units.frame_ms, this.most);
    this.body.replaceChildren(
      h("div", { class: "grid" },
        h("div", { class: "card" }, h("h3", {}, `unit ${this.unit}`),
          h("p", {}, `${percent(total ? units.use[this.unit] / total : 0, 2)} of the frames, `,
            units.duration_ms[this.unit] === null ? "never in the counted utterances"
              : `${number(units.duration_ms[this.unit])} ms at a time`),
          (units.neighbours[this.unit] || []).length ? h("p", {}, "nearest centroids: ",
            units.neighbours[this.unit].map((other) =>
              h("button", { onclick: () => this.show(other), style: "margin:0 .2rem" }, String(other)))) : null),
        h("div", { class: "card" }, h("h3", {}, "phones"),
          phones.length ? bars(phones) : h("p", { class: "dim" }, "no phone alignments")),
        h("div", { class: "card" }, h("h3", {}, "speakers"),
          units.speakers[this.unit].length ? bars(units.speakers[this.unit]) : h("p", { class: "dim" }, "unknown"))),
      h("h3", {}, examples.length ? "its longest occurrences in the utterances below"
        : this.data.clips.some((clip) => clip.units[iteration]) ? "does not occur in the utterances below"
          : "the utterances below are not of this run's corpus"),
      h("div", { class: "examples" }, examples.map((example) => this.example(example))));
  }

  example({ clip, start, end, unit }) {
    const from = Math.max(0, start - 0.2);
    const to = Math.min(clip.seconds, end + 0.2);
    const canvas = h("canvas", { role: "img", "aria-label": `spectrogram, ${number(start)} s of ${clip.id}` });
    const card = h("div", { class: "card example" }, canvas);
    const phone = phone_at(clip, (start + end) / 2);
    card.append(h("button", {
      class: "play",
      onclick: () => {
        card.classList.add("playing");
        play(clip, from, to, () => card.classList.remove("playing"));
      },
    }, `▶ ${phone ? `${phone} · ` : ""}${clip.speaker || clip.id}`));
    canvas.style.cursor = "pointer";
    canvas.addEventListener("click", () => this.show_clip(clip, start, { iteration: this.iteration, unit }));
    draw_spectrogram(canvas, clip, from, to, start, end);
    return card;
  }
}

// -- utterances

const PIXELS_PER_SECOND = 260;

class Utterance {
  constructor(data, choose_unit) {
    this.data = data;
    this.choose_unit = choose_unit;
    this.clips = data.clips;
    this.choice = h("select", { "aria-label": "utterance", onchange: () => this.show(this.clips[this.choice.selectedIndex]) },
      this.clips.map((clip) => h("option", {}, `${clip.id}${clip.speaker ? ` (${clip.speaker})` : ""}, ${clip.split}`)));
    this.text = h("p", {});
    this.names = h("p", { class: "lanes-names" });
    this.scroller = h("div", { class: "timeline", tabindex: "0", role: "group",
      "aria-label": "utterance: space plays, arrow keys move, n and p go to the next and previous one" });
    this.element = h("div", {},
      h("div", { class: "row controls no-print" },
        h("button", { onclick: () => this.step(-1), "aria-label": "previous utterance" }, "‹"),
        this.choice,
        h("button", { onclick: () => this.step(1), "aria-label": "next utterance" }, "›"),
        h("button", { class: "play", onclick: () => this.toggle() }, "▶ / ❚❚")),
      this.text, this.scroller, this.names);
    this.scroller.addEventListener("keydown", (event) => {
      const action = {
        " ": () => this.toggle(),
        ArrowLeft: () => this.seek(this.wave.getCurrentTime() - 0.1),
        ArrowRight: () => this.seek(this.wave.getCurrentTime() + 0.1),
        n: () => this.step(1), p: () => this.step(-1),
      }[event.key];
      if (!action) return;
      event.preventDefault();
      action();
    });
  }

  step(by) {
    const place = this.clips.indexOf(this.clip) + by;
    this.show(this.clips[(place + this.clips.length) % this.clips.length]);
  }

  toggle() {
    player.pause();
    if (this.wave) this.wave.playPause();
  }

  seek(time) {
    if (this.wave) this.wave.setTime(Math.max(0, Math.min(this.clip.seconds, time)));
  }

  // marked: {iteration, unit} whose runs are marked.
  show(clip, time = 0, marked = null) {
    if (!clip) return;
    if (this.wave) this.wave.destroy();
    this.clip = clip;
    this.choice.selectedIndex = this.clips.indexOf(clip);
    this.text.replaceChildren(clip.text || h("span", { class: "dim" }, "no transcript"),
      clip.cut ? h("span", { class: "dim" }, ` (its first ${clip.seconds} s)`) : "",
      clip.error ? h("span", { class: "bad" }, ` ${clip.error}`) : "");
    const width = Math.max(this.scroller.clientWidth - 2, clip.seconds * PIXELS_PER_SECOND);
    const wave = h("div", {});
    const playhead = h("div", { class: "playhead" });
    const inner = h("div", { style: `position:relative;width:${width}px` }, wave, playhead);
    this.scale = width / clip.seconds;
    const lanes = [];
    if (clip.phones.length) {
      lanes.push("phones");
      inner.append(this.lane(clip.phones.map(([phone, start, end]) =>
        ({ label: phone, start, end, colour: "var(--line)", text: "var(--text)" }))));
    }
    for (const [name, units] of Object.entries(this.data.units)) {
      if (!clip.units[name]) continue;
      lanes.push(`units of ${name}`);
      inner.append(this.lane(runs_of(clip, name, units.frame_ms).map((run) => ({
        label: String(run.unit), ...run, colour: unit_colour(run.unit),
        chosen: marked && marked.iteration === name && marked.unit === run.unit,
        choose: () => this.choose_unit(run.unit, name),
      }))));
    }
    this.names.textContent = `From above: waveform, spectrogram (to 8 kHz), ${lanes.join(", ")}. ` +
      "Click to go to a place; once the picture is chosen, space plays, ← and → move, n and p show the next and the previous utterance.";
    this.scroller.replaceChildren(inner);
    this.wave = null;
    if (!clip.audio) return;
    this.wave = WaveSurfer.create({
      container: wave, sampleRate: 16000, height: 70, interact: true, hideScrollbar: true, cursorWidth: 0,
      waveColor: colour("dim"), progressColor: colour("one"),
      plugins: [WaveSurfer.Spectrogram.create({ height: 130, labels: false, frequencyMax: 8000, fftSamples: 512, scale: "linear" })],
    });
    const regions = this.wave.registerPlugin(WaveSurfer.Regions.create());
    const move = (at) => {
      const left = (at / clip.seconds) * width;
      playhead.style.left = `${left}px`;
      const seen = this.scroller;
      if (left < seen.scrollLeft || left > seen.scrollLeft + seen.clientWidth - 20) seen.scrollLeft = left - 40;
    };
    this.wave.on("timeupdate", move);
    this.wave.on("ready", () => {
      if (marked) {
        runs_of(clip, marked.iteration, this.data.units[marked.iteration].frame_ms)
          .filter((run) => run.unit === marked.unit)
          .forEach((run) => regions.addRegion({ start: run.start, end: run.end, drag: false, resize: false,
            color: "rgba(234, 115, 23, .35)" }));
      }
      this.seek(time);
      move(time);
    });
    this.wave.loadBlob(new Blob([bytes_of(clip)], { type: "audio/ogg" }));
  }

  lane(pieces) {
    const seconds = this.clip.seconds;
    return h("div", { class: "lane" }, pieces.map((piece) => h("span", {
      class: piece.chosen ? "piece chosen" : "piece",
      title: `${piece.label}: ${piece.start.toFixed(2)} to ${piece.end.toFixed(2)} s`,
      style: `left:${(100 * piece.start) / seconds}%;width:${(100 * (piece.end - piece.start)) / seconds}%;` +
        `background:${piece.colour};color:${piece.text || "#111"}`,
      onclick: () => { this.seek(piece.start); if (piece.choose) piece.choose(); },
    }, (piece.end - piece.start) * this.scale >= 3 + 7 * piece.label.length ? piece.label : "")));
  }
}
