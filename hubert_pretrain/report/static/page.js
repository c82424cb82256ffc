// The page of a run, or of several beside each other, in the order in which people ask. The data is
// in #data (report/contents.py).
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const several = runs.length > 1;
const COLOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
runs.forEach((run, place) => { run.colour = COLOURS[place % COLOURS.length]; });
const iterations = [...new Set(runs.flatMap((run) => Object.keys(run.iterations)))];
const sections = [];

function section(id, name, title, ...content) {
  sections.push([id, name]);
  document.getElementById("main").append(h("section", { id }, h("h2", {}, title), ...content));
}

function facts_of(run, name, verb) {
  return (run.iterations[name] || { facts: {} }).facts[verb] || {};
}

// The name of a part of a run: "it1", or "my run: it1" where there are several runs.
function part_of(run, name) {
  return several ? `${run.name}: ${name}` : name;
}

// The name of a run with its colour.
function tag(run) {
  return h("span", {}, h("span", { class: "dot", style: `background:var(--${run.colour})` }), run.name);
}

function card(label, value, note = "", state = "") {
  return h("div", { class: "card" }, h("div", { class: "dim small" }, label),
    h("div", { class: `number ${state}` }, value), note ? h("div", { class: "small dim" }, note) : null);
}

function last(curves, name) {
  const points = curves[name];
  return points ? points[1][points[1].length - 1] : null;
}

// -- healthy?

// What the curves of a training say at its end: [label, value, note, state].
function findings(run, name) {
  const curves = run.iterations[name].curves;
  const entropy = facts_of(run, name, "label").unigram_entropy_nats;
  const loss = last(curves, "valid/loss/masked") ?? last(curves, "loss/masked");
  const under = loss !== null && entropy ? 1 - loss / entropy : null;
  const use = last(curves, "health/codebook_use/predictions");
  const there = last(curves, "health/codebook_use/targets");
  const wait = last(curves, "health/data_wait");
  const alarms = run.iterations[name].alarms;
  const raised = Math.max(alarms.length, last(curves, "health/alarms") ?? 0);
  return { under, rows: [
    ["masked loss", number(loss), `unigram entropy ${number(entropy)} nats`, under === null ? "" : under > 0.02 ? "good" : "bad"],
    ["below the entropy", percent(under)],
    ["masked accuracy", percent(last(curves, "valid/accuracy/masked") ?? last(curves, "accuracy/masked"))],
    ["units predicted", percent(use, 0), `of all, in one step; its targets have ${percent(there, 0)}`, use !== null && use < there / 2 ? "warn" : ""],
    ["gradient norm", number(last(curves, "gradient_norm"))],
    ["audio s per s", number(last(curves, "audio_seconds_per_second"))],
    ["MFU", percent(last(curves, "health/mfu")), "of the peak of the hardware"],
    ["waiting for data", percent(wait), "", wait !== null && wait > 0.05 ? "warn" : ""],
    ["alarms", number(raised), alarms.map((each) => words_of(each.name)).join(", "), raised ? "warn" : "good"],
  ] };
}

function words_of(name) {
  return name.replaceAll("_", " ");
}

// Which alarms there were, when, how often, and what to do; nothing where there was none.
function alarm_table(present, name) {
  const rows = present.flatMap((run) => run.iterations[name].alarms.map((each) => [
    ...(several ? [tag(run)] : []), h("span", { class: "warn" }, words_of(each.name)), number(each.first), number(each.last),
    `${number(each.logs)} of ${number(each.of)}`, each.advice]));
  if (!rows.length) return null;
  const header = [...(several ? ["run"] : []), "alarm", "first at step", "last at step", "logs", "what to do"];
  return [h("h4", {}, "Alarms"), table(header, rows, { words: [header.length - 1] }),
    h("p", { class: "small dim" }, "Conditions of the alarms: docs/health.md, section Alarms. The log of the run says each once, with its numbers.")];
}

// Lines of a chart. Of one run every series has a colour; of several every run has, and only the
// series that are `main` are drawn.
function lines_of(present, name, series) {
  return present.flatMap((run) => series.filter((each) => !several || each.main).map((each) => ({
    ...each,
    label: several ? `${run.name}, ${each.label}` : each.label,
    points: run.iterations[name].curves[each.key],
    colour: several ? run.colour : each.colour,
  })));
}

function published(present, name) {
  const found = present.map((run) => run.iterations[name].published).find(Boolean);
  if (!found) return [null, []];
  const points = Object.entries(found.points);
  return [found.label, [{ label: "published, masked", colour: "dim", dots: true, dash: [1, 4],
    points: [points.map(([at]) => Number(at)), points.map(([, [bits]]) => bits * Math.LN2)] }]];
}

function entropies(present, name) {
  const found = present.map((run) => [run, facts_of(run, name, "label").unigram_entropy_nats]).filter(([, value]) => value);
  const equal = new Set(found.map(([, value]) => value.toFixed(6))).size <= 1;
  if (equal) return found.length ? { "unigram entropy": found[0][1] } : {};
  return Object.fromEntries(found.map(([run, value]) => [`unigram entropy, ${run.name}`, value]));
}

function health(name) {
  const present = runs.filter((run) => Object.keys((run.iterations[name] || { curves: {} }).curves).length);
  if (!present.length) return [h("h3", {}, name), h("p", { class: "dim" }, "not trained yet")];
  const [source, points] = published(present, name);
  const at = (run) => {
    const curves = run.iterations[name].curves;
    return `step ${number(curves.loss ? curves.loss[0][curves.loss[0].length - 1] : 0)} of ${number(run.iterations[name].steps)}`;
  };
  const found = present.map((run) => findings(run, name));
  const verdict = ({ under }) => under === null ? "The targets are not there, so the loss has nothing to be compared with."
    : under > 0.02 ? `The network knows ${percent(under)} more about masked frames than the frequency of the clusters.`
      : "The network knows no more than the frequency of the clusters.";
  const chart_of = (title, series, options) => chart(title, lines_of(present, name, series), options);
  const loss = chart("loss, nats per frame", [...lines_of(present, name, [
    { label: "masked, train", key: "loss/masked", colour: "one", main: true },
    { label: "masked, valid", key: "valid/loss/masked", colour: "one", dots: true, dash: [3, 3], main: true },
    { label: "unmasked, train", key: "loss/unmasked", colour: "two" },
  ]), ...points], { at: entropies(present, name) });
  const summary = several
    ? table(["run", "steps", ...found[0].rows.map(([label]) => label)], present.map((run, place) =>
      [tag(run), at(run).replace("step ", ""), ...found[place].rows.map(([, value, , state]) => h("span", { class: state || "" }, value))]))
    : h("div", { class: "row" }, found[0].rows.map((row) => card(...row)));
  return [
    h("h3", {}, several ? name : `${name}: ${at(present[0])}`),
    several ? null : h("p", {}, verdict(found[0])),
    source ? h("p", {}, `Dots: ${source}.`) : null,
    summary,
    alarm_table(present, name),
    h("div", { class: "grid", style: "margin-top:1rem" }, loss,
      chart_of("accuracy", [
        { label: "masked, train", key: "accuracy/masked", colour: "one", main: true },
        { label: "masked, valid", key: "valid/accuracy/masked", colour: "one", dots: true, dash: [3, 3], main: true },
        { label: "unmasked, train", key: "accuracy/unmasked", colour: "two" },
        { label: "PNMI of a layer", key: "health/pnmi", colour: "three", dots: true },
      ], { from_zero: true, format: percent }),
      chart_of("units predicted, share of all", [
        { label: "predictions", key: "health/codebook_use/predictions", colour: "one", main: true },
        { label: "targets", key: "health/codebook_use/targets", colour: "two" }], { from_zero: true, format: percent }),
      chart_of("gradient norm", [{ label: "gradient", key: "gradient_norm", colour: "four", main: true }], { from_zero: true }),
      chart_of("audio seconds per second", [
        { label: "training", key: "audio_seconds_per_second", colour: "three", main: true }], { from_zero: true }),
      chart_of("use of the hardware", [
        { label: "MFU", key: "health/mfu", colour: "one", main: true },
        { label: "waiting for data", key: "health/data_wait", colour: "two", dash: [3, 3], main: true }],
      { from_zero: true, format: percent })),
  ];
}

// -- better than before?

function comparison() {
  const rows = runs.flatMap((run) => Object.keys(run.iterations).map((name) => {
    const label = facts_of(run, name, "label");
    const training = facts_of(run, name, "pretrain");
    const segments = (data.units[part_of(run, name)] || {}).segments || {};
    const under = training.masked_loss_nats && label.unigram_entropy_nats
      ? 1 - training.masked_loss_nats / label.unigram_entropy_nats : null;
    return { run, name, size: label.n_clusters, pnmi: label.pnmi, corpus: (run.corpus || {}).id, cells: [
      several ? h("span", {}, tag(run), `: ${name}`) : name, number(label.n_clusters), number(label.pnmi),
      number(label.phone_purity), percent(label.abx_within), percent(label.abx_across), number(segments.f1),
      number(segments.r_value), number(segments.phone_error_rate), percent(under), percent(training.masked_accuracy)] };
  }));
  const found = table(["iteration", "K", "PNMI", "phone purity", "ABX within", "ABX across", "boundary F1", "R-value",
    "phone error", "loss below entropy", "masked acc."], rows.map((row) => row.cells));
  return [...(several ? ranking(rows) : [h("p", {}, progress_of(rows))]), found,
    h("p", { class: "small dim" }, "PNMI: share of the uncertainty about the phone that the unit removes. ABX, phone error: " +
      "lower is better. For boundaries and phone error each unit stands for its most frequent phone, as the command score-units " +
      "measures them; a boundary may miss by 20 ms. R-value punishes too many boundaries.")];
}

function progress_of(rows) {
  const scored = rows.filter((row) => row.pnmi);
  if (!scored.length) return "Without phone alignments the iterations cannot be compared here.";
  if (rows.length === 1) return "One iteration only.";
  if (scored.length === 1) return `Only ${scored[0].name} has a PNMI.`;
  const change = scored.map((row) => number(row.pnmi)).join(" → ");
  if (new Set(scored.map((row) => row.size)).size > 1) return `PNMI ${change}, but K differs: PNMI rises with K, so they do not compare.`;
  return scored[scored.length - 1].pnmi > scored[0].pnmi ? `PNMI ${change} at equal K: the units follow phones better.`
    : `PNMI ${change} at equal K: no better than before.`;
}

// PNMI rises with K and depends on the speech: only scores of equal K on one corpus have an order.
function ranking(rows) {
  const groups = {};
  for (const row of rows.filter((each) => each.pnmi)) (groups[`${row.size} ${row.corpus}`] ||= []).push(row);
  const several_corpora = new Set(rows.map((row) => row.corpus)).size > 1;
  const alone = Object.values(groups).filter((group) => group.length === 1).flat();
  const shared = Object.values(groups).filter((group) => group.length > 1);
  if (!alone.length && !shared.length) return [h("p", {}, "Without phone alignments units cannot be ranked here.")];
  return [
    ...shared.map((group) => h("p", { class: "rank" }, `K = ${group[0].size}, best PNMI first: `,
      group.sort((a, b) => b.pnmi - a.pnmi).map((row, place) =>
        h("span", {}, place ? ", " : "", tag(row.run), `: ${row.name} (${number(row.pnmi)})`)))),
    alone.length ? h("p", { class: "unranked" }, "Not ranked, because no other has its K",
      several_corpora ? " on its corpus" : "", ": ", alone.map((row, place) =>
        h("span", {}, place ? ", " : "", tag(row.run), `: ${row.name} (K = ${row.size})`)), ".") : null,
  ];
}

// -- what differs?

function differing() {
  const { values, origins } = data.configuration;
  const keys = Object.keys(values);
  if (!keys.length) return [h("p", {}, "The configurations are the same.")];
  return [h("p", {}, "Only keys with different values. Below each value, where it comes from, where that is known."),
    table(["key", ...runs.map((run) => run.name)], keys.map((key) => [h("code", {}, key),
      ...values[key].map((value, place) => h("div", {}, h("div", {}, value === "" ? "–" : value),
        h("div", { class: "small dim" }, origins[key][place])))]), { words: runs.map((_, place) => place + 1) })];
}

// -- layers

function layers(name) {
  const present = runs.filter((run) => (run.iterations[name] || {}).layers);
  const rows_of = (run) => run.iterations[name].layers.scores.filter((row) => row.layer);
  const scores = [["PNMI", "pnmi", "one", true], ["phone purity", "phone_purity", "two"],
    ["speaker NMI", "speaker_nmi", "four", true], ["stability", "stability", "three"]];
  return [h("h3", {}, name),
    present.map((run) => h("p", {}, several ? [tag(run), ": "] : null,
      `layer ${run.iterations[name].layers.layer}, the best by ${run.iterations[name].layers.criterion}.`)),
    h("div", { class: "grid" }, chart(`scores of the layers for ${name}`, present.flatMap((run) =>
      scores.filter(([, , , main]) => !several || main).map(([label, key, tint], place) => ({
        label: several ? `${run.name}, ${label}` : label, colour: several ? run.colour : tint, dots: true,
        dash: several && place ? [3, 3] : undefined,
        points: [rows_of(run).map((row) => row.layer), rows_of(run).map((row) => row[key] ?? null)],
      }))), { from_zero: true })),
    present.map((run) => [several ? h("p", {}, tag(run)) : null,
      table(Object.keys(rows_of(run)[0] || {}), rows_of(run).map((row) => Object.values(row).map((value) => number(value))))])];
}

// -- loop and cost

const CARRIES = { prepare: "corpus", cluster: "codebook", label: "targets", pretrain: "checkpoint", spin: "checkpoint", finetune: "checkpoint" };
const BOX = { width: 212, height: 46, across: 276 };
const LANE = 9;  // between two lines that run beside each other

// Rows of boxes: prepare, each iteration, each task with its scores to the right, export; at most
// four in a row.
function rows_of_stages(stages) {
  const rows = [];
  const row_of = {};
  for (const stage of stages) {
    const [first, second] = stage.name.split("/");
    const is_score = stage.verb === "evaluate";
    const group = is_score || stage.verb === "finetune" ? `task ${second}` : first;
    if (!row_of[group] || row_of[group].length === 4) rows.push(row_of[group] = is_score && row_of[group] ? [null] : []);
    row_of[group].push(stage);
  }
  return rows;
}

// Where boxes and lines lie. A line runs in the gaps between rows and in the margin at the left, so
// it passes no box; the lines of one stage share a lane, and no other stage has it.
function layout(run) {
  const rows = rows_of_stages(run.stages);
  const at = new Map();
  rows.forEach((row, y) => row.forEach((stage, x) => stage && at.set(stage.name, { x, y, stage })));
  const lanes = rows.map(() => new Map());  // of the gap below each row: stage -> lane
  const margin = new Map();
  const lane = (of, name) => { if (!of.has(name)) of.set(name, of.size); return of.get(name); };
  const edges = run.stages.flatMap((stage) => stage.inputs.filter((name) => at.has(name)).map((name) => {
    const from = at.get(name);
    const to = at.get(stage.name);
    const down = to.y - from.y;
    if (from.stage.verb === "prepare" && !(down === 1 && to.x === 0)) return null;
    if (down === 0 && to.x === from.x + 1) return { from, to, kind: "beside" };
    if (down === 1 && to.x === from.x) return { from, to, kind: "below" };
    if (down === 0 || down === 1) return { from, to, kind: down ? "next" : "same", below: lane(lanes[from.y], name) };
    return { from, to, kind: "far", margin: lane(margin, name), below: from.x ? lane(lanes[from.y], name) : null,
      above: to.x ? lane(lanes[to.y - 1], name) : null };
  })).filter(Boolean);
  const left = 8 + (margin.size ? LANE * margin.size + 14 : 0);
  const tops = [];
  rows.reduce((top, _, y) => { tops.push(top); return top + BOX.height + 30 + LANE * lanes[y].size; }, 8);
  const corner = ({ x, y }) => [left + x * BOX.across, tops[y]];
  const gap = (y, number) => tops[y] + BOX.height + 16 + LANE * number;
  const columns = Math.max(...rows.map((row) => row.length));
  return { at, edges, corner, gap, margin: (number) => 8 + LANE * number,
    width: left + (columns - 1) * BOX.across + BOX.width + 8, height: tops[rows.length - 1] + BOX.height + 16 };
}

// Corners of the line of an edge.
function route({ corner, gap, margin }, edge) {
  const [x1, y1] = corner(edge.from);
  const [x2, y2] = corner(edge.to);
  const middle = BOX.width / 2;
  if (edge.kind === "beside") return [[x1 + BOX.width, y1 + BOX.height / 2], [x2, y1 + BOX.height / 2]];
  if (edge.kind === "below") return [[x1 + middle, y1 + BOX.height], [x2 + middle, y2]];
  const lane = edge.below === null ? 0 : gap(edge.from.y, edge.below);
  const out = [[x1 + middle, y1 + BOX.height], [x1 + middle, lane]];
  if (edge.kind === "same") return [...out, [x2 + middle, lane], [x2 + middle, y2 + BOX.height]];
  if (edge.kind === "next") return [...out, [x2 + middle, lane], [x2 + middle, y2]];
  const side = margin(edge.margin);
  const start = edge.below === null ? [[x1, y1 + BOX.height - 12], [side, y1 + BOX.height - 12]] : [...out, [side, lane]];
  if (edge.above === null) return [...start, [side, y2 + 14], [x2, y2 + 14]];
  const above = gap(edge.to.y - 1, edge.above);
  return [...start, [side, above], [x2 + middle, above], [x2 + middle, y2]];
}

// A line through its corners, which are rounded.
function rounded(points) {
  const towards = ([x, y], [u, v]) => {
    const far = Math.hypot(u - x, v - y) || 1;
    const share = Math.min(6, far / 2) / far;
    return `${x + (u - x) * share} ${y + (v - y) * share}`;
  };
  const bends = points.slice(1, -1).map((point, place) => `L${towards(point, points[place])}Q${point.join(" ")} ${towards(point, points[place + 2])}`);
  return `M${points[0].join(" ")}${bends.join("")}L${points[points.length - 1].join(" ")}`;
}

// A box for each stage. An arrow says what a stage reads.
function diagram(run) {
  const found = layout(run);
  const { width, height } = found;
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "loop",
    style: `min-width:${Math.min(width, 680)}px;max-width:${width}px`,
    "aria-label": `stages of ${run.recipe}: ${run.stages.map((stage) => `${stage.name} ${stage.state}`).join(", ")}` });
  picture.append(draw("defs", {}, draw("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7,
    markerHeight: 7, orient: "auto" }, draw("path", { d: "M0 0L8 4L0 8z", class: "tip" }))));
  found.edges.forEach((edge) => {
    const points = route(found, edge);
    const source = edge.from.stage;
    const words = CARRIES[source.verb] || "";
    picture.append(draw("path", { class: "edge", "marker-end": "url(#tip)", d: rounded(points) },
      draw("title", {}, `${words} of ${source.name}`)));
    const say = (x, y, anchor) => picture.append(draw("text", { x, y, "text-anchor": anchor, class: "carried" }, words));
    if (edge.kind === "beside") say((points[0][0] + points[1][0]) / 2, points[0][1] - 6, "middle");
    else if (edge.kind === "below") say(points[1][0] + 7, points[1][1] - 9, "start");
    else if (edge.kind === "next") say((points[1][0] + points[2][0]) / 2, points[1][1] - 4, "middle");
  });
  run.stages.forEach((stage) => {
    const at = found.corner(found.at.get(stage.name));
    const time = stage.seconds === null || stage.seconds === undefined ? "" : `, ${duration(stage.seconds)}`;
    const from = [...stage.inputs, ...stage.outside];
    picture.append(draw("g", { class: `box ${stage.state}`, transform: `translate(${at.join(" ")})` },
      draw("title", {}, `${stage.name}: ${stage.state}${time}${from.length ? `; from ${from.join(", ")}` : ""}`),
      draw("rect", { width: BOX.width, height: BOX.height, rx: 7 }),
      draw("circle", { cx: 14, cy: 16, r: 5 }),
      draw("text", { x: 26, y: 20, class: "name", ...(stage.name.length > 24 ? { textLength: BOX.width - 34, lengthAdjust: "spacingAndGlyphs" } : {}) },
        short(stage.name, 36)),
      draw("text", { x: 12, y: 37, class: "state" }, short(`${stage.state}${time}`, 28))));
  });
  const outside = run.stages.filter((stage) => stage.outside.length);
  return [h("div", { class: "scroll" }, picture),
    h("p", { class: "small dim" }, "Every stage but the export reads the corpus too; those arrows are left out.",
      outside.map((stage) => ` ${stage.name} reads ${stage.outside.join(", ")}, made elsewhere.`))];
}

function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

// A table with a row per stage and a column per run.
function by_stage(cell, { totals = null } = {}) {
  const names = [...new Set(runs.flatMap((run) => run.stages.map((stage) => stage.name)))];
  const rows = names.map((name) => [name, ...runs.map((run) => {
    const stage = run.stages.find((each) => each.name === name);
    return stage ? cell(stage) : "–";
  })]);
  if (totals) rows.push(["all", ...totals]);
  return table(["stage", ...runs.map((run) => run.name)], rows);
}

function loop() {
  return several ? [by_stage((stage) => h("span", {}, h("span", { class: `dot ${stage.state}` }), stage.state))] : diagram(runs[0]);
}

function costs() {
  const total_of = (run) => run.stages.reduce((sum, stage) => sum + (stage.seconds || 0), 0);
  if (several) return [by_stage((stage) => stage.bytes ? `${duration(stage.seconds)}, ${bytes(stage.bytes)}` : "–", { totals: runs.map((run) => duration(total_of(run))) })];
  const total = total_of(runs[0]);
  return [table(["stage", "time", "share", "on disk", "finished"], runs[0].stages.map((stage) => [
    stage.name, duration(stage.seconds), total && stage.seconds ? percent(stage.seconds / total) : "–",
    bytes(stage.bytes), stage.finished.replace("T", " ").slice(0, 16)])),
  h("p", {}, `${duration(total)} of work in all.`)];
}

// -- corpus

function corpus_card(found) {
  const lengths = found.length_seconds || {};
  return [h("div", { class: "row" },
    card("hours", number(found.hours)), card("utterances", number(found.utterances)),
    card("speakers", number(found.speakers)), card("with transcript", number(found.transcribed_utterances)),
    card("with phones", number(found.aligned_utterances)),
    card("quarantined", number((found.quarantined || {}).utterances), "", (found.quarantined || {}).utterances ? "warn" : ""),
    card("median length", `${number(lengths.median)} s`, `${number(lengths.min)} to ${number(lengths.max)} s`)),
  table(["split", "utterances", "hours", "speakers"], Object.entries(found.splits || {}).map(([name, split]) =>
    [name, number(split.utterances), number(split.hours), number(split.speakers)]))];
}

function corpus() {
  const groups = new Map();
  for (const run of runs) {
    const id = (run.corpus || {}).id || "";
    groups.set(id, [...(groups.get(id) || []), run]);
  }
  return [...groups].map(([id, group]) => [
    several ? h("h3", {}, group.map((run) => run.name).join(", ")) : null,
    id ? corpus_card(group[0].corpus) : h("p", { class: "dim" }, "not prepared yet")]);
}

// -- speakers

function speakers(explorer) {
  const rows = runs.flatMap((run) => Object.keys(run.iterations).map((name) => {
    const label = facts_of(run, name, "label");
    return [several ? h("span", {}, tag(run), `: ${name}`) : name, number(label.speaker_nmi), number(label.speaker_purity)];
  }));
  return [h("p", {}, "Units should tell the phone and not the speaker: lower is better."),
    table(["iteration", "speaker NMI", "speaker purity"], rows),
    Object.keys(data.units).map((name) => {
      const found = data.units[name].speakers.flatMap((top, unit) => (top.length ? [[unit, ...top[0]]] : []))
        .sort((a, b) => b[2] - a[2]).slice(0, 6);
      return found.length ? h("p", { class: "small" }, `Units of ${name} that one speaker uses most: `, found.map(([unit, speaker, share]) =>
        h("button", { style: "margin:.1rem .2rem", onclick: () => { explorer.show(unit, name); location.hash = "#unit"; } },
          `${unit}: ${speaker} ${share} %`))) : null;
    })];
}

function unowned(units) {
  const peak = new Set(units.shares.filter((_, unit) => units.use[unit] > 0).map((row) => row.indexOf(Math.max(...row))));
  const without = units.phones.filter((_, place) => !peak.has(place));
  return h("p", { class: "small" }, without.length
    ? `No unit has one of these as its most likely phone: ${without.join(", ")}.`
    : "Each phone is the most likely one of some unit.");
}

// -- tasks

function interval_of(facts, label) {
  const interval = (facts.intervals || {})[label];
  return interval ? `${number(interval[0])} to ${number(interval[1])}` : "";
}

function scores(facts) {
  return h("div", { class: "row" }, Object.entries(facts)
    .filter(([, value]) => typeof value === "number")
    .map(([label, value]) => card(words_of(label), number(value), interval_of(facts, label))));
}

// Scores of a split with a column per run.
function scores_beside(present, name, split) {
  const facts = present.map((run) => run.tasks[name].splits[split].facts);
  const labels = [...new Set(facts.flatMap((each) => Object.keys(each.intervals || {})))];
  const rows = labels.map((label) => [label, ...facts.map((each) => each[label] === undefined && !interval_of(each, label) ? "–"
    : h("div", {}, h("div", {}, number(each[label])), h("div", { class: "small dim" }, interval_of(each, label))))]);
  const differences = data.differences[`${name}/${split}`] || [];
  const paired = present.map((run) => differences[runs.indexOf(run)]);
  if (paired.some(Boolean)) {
    rows.push(["error rate to the first", ...paired.map((found) => found ? h("div", {},
      h("div", { class: found.high < 0 ? "good" : found.low > 0 ? "bad" : "" }, `${found.value > 0 ? "+" : ""}${number(found.value)}`),
      h("div", { class: "small dim" }, `${number(found.low)} to ${number(found.high)}`)) : "–")]);
  }
  return [table(["score", ...present.map((run) => run.name)], rows),
    paired.some(Boolean) ? h("p", { class: "small dim" }, "The last row: errors less those of the first run that was scored, on " +
      "the same utterances, with the 95 % interval of a paired bootstrap. Coloured where it leaves zero out.") : null];
}

function worst_table(worst, explorer) {
  const by_id = new Map(data.clips.map((clip) => [clip.id, clip]));
  return table(["utterance", "errors", "reference", "prediction"], worst.map((each) => {
    const clip = by_id.get(each.id);
    const play_it = () => { explorer.show(clip); location.hash = "#utterances"; };
    return [clip ? h("button", { onclick: play_it }, `▶ ${each.id}`) : each.id,
      each.is_share ? percent(each.errors, 0) : number(each.errors), each.reference, each.prediction];
  }), { words: [2, 3] });
}

function task(name, explorer) {
  const present = runs.filter((run) => run.tasks[name]);
  const trained = present.filter((run) => Object.keys(run.tasks[name].curves).length);
  const valid = [...new Set(trained.flatMap((run) => Object.keys(run.tasks[name].curves)))]
    .filter((key) => key.startsWith("valid/") && key !== "valid/loss");
  const splits = [...new Set(present.flatMap((run) => Object.keys(run.tasks[name].splits)))];
  const lines = (keys) => trained.flatMap((run) => keys.map(([key, label], place) => ({
    label: several ? `${run.name}, ${label}` : label, points: run.tasks[name].curves[key], dots: key.startsWith("valid/"),
    colour: several ? run.colour : COLOURS[place % 4], dash: several && place ? [3, 3] : undefined })));
  return [h("h3", {}, name),
    splits.length ? null : h("p", { class: "dim" }, "not scored yet"),
    trained.length ? h("div", { class: "grid" },
      chart("loss", lines([["loss", "train"], ["valid/loss", "valid"]])),
      chart("scores of valid", lines(valid.map((key) => [key, words_of(key.slice(6))])), { from_zero: true })) : null,
    splits.flatMap((split) => {
      const scored = present.filter((run) => run.tasks[name].splits[split]);
      return [h("h3", {}, `${name} on ${split}`),
        several ? scores_beside(scored, name, split) : scores(scored[0].tasks[name].splits[split].facts),
        scored.map((run) => {
          const worst = run.tasks[name].splits[split].worst;
          return worst.length ? [h("p", {}, several ? [tag(run), ": "] : null, "The utterances with most errors:"), worst_table(worst, explorer)] : null;
        })];
    })];
}

// -- environment

function environment(run) {
  const versions = Object.assign({}, ...run.stages.map((stage) => stage.versions));
  const machines = [...new Set(run.stages.filter((stage) => stage.machine.system).map(({ machine }) =>
    `${machine.system}, ${machine.cores} cores, ${machine.gpus.length ? machine.gpus.join(", ") : "no GPU"}, processes: ${machine.processes}`))];
  const commands = [...new Set(run.stages.map((stage) => stage.command).filter(Boolean))];
  return [several ? h("h3", {}, tag(run)) : null,
    h("p", { class: "small" }, Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(", ")),
    machines.map((words) => h("p", { class: "small" }, words)),
    h("p", {}, "The same run again: ", h("code", {}, `hubert-pretrain +recipe=${run.name}/recipe.yaml`)),
    commands.length ? h("details", { open: commands.length <= 3 }, h("summary", {}, "the commands that ran its stages"),
      commands.map((command) => h("p", {}, h("code", {}, command)))) : null];
}

function whole_configuration() {
  const { values, origins } = data.configuration;
  return h("details", {}, h("summary", {}, "the whole configuration"),
    table(["key", "value", "from"], Object.keys(values).map((key) => [key, values[key][0], origins[key][0]]), { words: [1, 2] }));
}

// -- the page

function build() {
  const done = (run) => `${run.stages.filter((stage) => stage.state === "done").length} of ${run.stages.length} stages done`;
  document.getElementById("header").append(...(several
    ? [h("h1", {}, `${runs.length} runs beside each other`),
      h("p", {}, runs.map((run) => h("span", { style: "margin-right:1.2rem" }, tag(run), h("span", { class: "dim" }, ` ${run.recipe}, ${done(run)}`)))),
      h("p", { class: "dim" }, `page made ${data.made}`)]
    : [h("h1", {}, runs[0].recipe), h("p", { class: "dim" }, `run ${runs[0].name}, ${done(runs[0])}, page made ${data.made}`)]));
  const main = document.getElementById("main");
  if (data.missing.length) {
    main.append(h("div", { class: "missing small" }, h("p", {}, "Not in this page:"),
      h("ul", {}, data.missing.map((sentence) => h("li", {}, sentence)))));
  }
  if (several) section("different", "differences", "What differs?", differing());
  section("loop", "loop", several ? "How far is each?" : "The loop", loop());
  if (iterations.length) {
    section("health", "health", several ? "Are they healthy?" : "Is it healthy?", iterations.flatMap(health));
    section("better", "progress", several ? "Which has better units?" : "Is it better than the iteration before?", comparison());
  }
  const chosen = iterations.filter((name) => runs.some((run) => (run.iterations[name] || {}).layers));
  if (chosen.length) section("layers", "layers", "Which layer?", chosen.flatMap(layers));

  const named = Object.keys(data.units);
  const utterance = new Utterance(data, (unit, iteration) => explorer.show(unit, iteration));
  const explorer = named.length ? new UnitExplorer(data, (clip, time, marked) => {
    utterance.show(clip, time, marked);
    location.hash = "#utterances";
  }) : null;
  if (explorer) {
    section("unit", "units", "What is a unit?", explorer.element);
    const mapped = named.filter((name) => data.units[name].shares);
    section("phones", "phones", "Where do units and phones disagree?",
      mapped.length ? h("p", {}, "Each column is a unit, each row a phone; a bright cell is the share of the unit's frames " +
        "with that phone. Units are sorted by their most likely phone.") : h("p", { class: "dim" }, "The corpus has no phone alignments."),
      mapped.flatMap((name) => [h("h3", {}, `${name}, K = ${data.units[name].n_clusters}`), unowned(data.units[name]),
        heat_map(data.units[name], (unit) => { explorer.show(unit, name); location.hash = "#unit"; })]));
    section("speaker", "speakers", several ? "Do they carry the speaker?" : "Does it carry the speaker?", speakers(explorer));
  }
  if (data.clips.length) section("utterances", "utterances", "Utterances and their units", utterance.element);
  const tasks = [...new Set(runs.flatMap((run) => Object.keys(run.tasks)))];
  if (tasks.length) section("tasks", "tasks", "Tasks, and the worst utterances", tasks.flatMap((name) => task(name, utterance)));
  section("cost", "cost", several ? "What did they cost?" : "What did it cost?", costs());
  section("corpus", "corpus", "The corpus", corpus());
  section("environment", "environment", several ? "Environment" : "Environment and configuration",
    runs.map(environment), several ? null : whole_configuration());

  document.getElementById("contents").append(...sections.map(([id, name]) => h("a", { href: `#${id}` }, name)));
  draw_charts();
  if (explorer) explorer.show(0);
  if (data.clips.length) utterance.show(data.clips[0]);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    draw_charts();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw_charts);
}

build();
